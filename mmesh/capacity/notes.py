"""What a plan extrapolates beyond its measurements, assumes, or leaves out."""

from __future__ import annotations

from collections.abc import Iterator

from mmesh.capacity.index_plan import MEASURED_DIM, MILLION, ShardPlan
from mmesh.capacity.wishes import Gpu, VectorKind, Wish


def notes_of(wish: Wish, index: ShardPlan) -> Iterator[str]:
    """Yield a sentence for each, those that matter most first."""
    yield from _of_the_index(wish, index)
    yield from _of_models(wish)
    yield "assumed: queries are texts, all modalities are searched, and load is even over the day"
    yield "left out: PostgreSQL's and S3's own processes, and what two shard sets take side by side"


def _of_the_index(wish: Wish, index: ShardPlan) -> Iterator[str]:
    if index.replicas > wish.replicas:
        yield f"{index.replicas} replicas, not {wish.replicas}: fewer have too few cores for it"
    if index.rows > MILLION:
        yield (
            f"extrapolated: shards of {index.rows:,} rows; measured were up to {MILLION:,}. "
            "Searches grow as from 100,000 to 1,000,000, builds as rows to the power of 1.5"
        )
    if wish.dim != MEASURED_DIM:
        yield f"extrapolated: dim {wish.dim} from {MEASURED_DIM}; all times as bytes of a vector"
    if wish.vectors is not VectorKind.FLOAT16:
        yield f"extrapolated: {wish.vectors.value}, by arithmetic; set {index.index_factory!r}"
    if index.shards > 2:
        yield f"extrapolated: gateways call {index.shards} shards; measured were two"
    if max(index.load_log_s, index.load_snapshot_s) > 1800:
        yield "a pod may load for longer than its startup probe of 30 minutes allows: raise that"
    yield (
        "extrapolated: PostgreSQL's disk, from rows in SQLite and half as much again, without its "
        "WAL; snapshots in S3, from a local disk"
    )


def _of_models(wish: Wish) -> Iterator[str]:
    if wish.gpu is Gpu.NONE:
        yield "encoders and judges are the embedded ones on CPU, whatever --dim is"
        return
    if wish.gpu is Gpu.H100:
        yield "extrapolated: H100 as H200, which it equals in arithmetic; measured was an H200"
    yield "models are of 2 billion parameters; others take as many times longer as they are larger"
    if wish.reranked:
        yield (
            "extrapolated: a judge takes a pair as long as an encoder of its size takes the "
            "candidate; no judge was measured on a GPU"
        )
