"""qdrant-edge: Qdrant's segment as a library."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import qdrant_edge as qdrant

from peers.contract import (
    DIM,
    EF_CONSTRUCTION,
    LIMIT,
    Batch,
    Condition,
    M,
    Peer,
    Searcher,
    Vector,
)


class QdrantEdge(Peer):
    """A shard with a payload index on both attributes, so that its graph knows them."""

    about = "embedded; HNSW, payload indexes"
    durable = "write-ahead log, not synced"

    @classmethod
    def version(cls) -> str:
        """Return the version of the package."""
        return f"qdrant-edge-py {version('qdrant-edge-py')}"

    def open(self) -> None:
        """Load the shard, or create it."""
        path = str(self.folder)
        if any(self.folder.iterdir()):
            self._shard = qdrant.EdgeShard.load(path)
            return
        config = qdrant.EdgeConfig(
            vectors={"v": qdrant.EdgeVectorParams(size=DIM, distance=qdrant.Distance.Dot)},
            hnsw_config=qdrant.HnswIndexConfig(
                m=M, ef_construct=EF_CONSTRUCTION, full_scan_threshold=100
            ),
            optimizers=qdrant.EdgeOptimizersConfig(
                default_segment_number=1, indexing_threshold=1000
            ),
        )
        self._shard = qdrant.EdgeShard.create(path, config)
        for name in ("cat", "sub"):
            kind = qdrant.PayloadSchemaType.Integer
            self._shard.update(qdrant.UpdateOperation.create_field_index(name, kind))

    def add(self, batch: Batch) -> None:
        """Upsert points."""
        points = [
            qdrant.Point(i, {"v": vector.tolist()}, {"cat": cat, "sub": sub, "text": text})
            for i, vector, cat, sub, text in zip(
                batch.ids, batch.vectors, batch.cats, batch.subs, batch.texts, strict=True
            )
        ]
        self._shard.update(qdrant.UpdateOperation.upsert_points(points))

    def finish(self) -> None:
        """Let the optimizer build the graphs, and flush."""
        self._shard.optimize()
        self._shard.flush()

    def searcher(self, setting: int) -> Searcher:
        """Search with `ef` as the setting."""
        shard, params = self._shard, qdrant.SearchParams(hnsw_ef=setting)

        def search(vector: Vector, condition: Condition | None) -> list[int]:
            request = qdrant.SearchRequest(
                query=qdrant.Query.Nearest(vector.tolist(), using="v"),
                limit=LIMIT,
                filter=_filter(condition),
                params=params,
            )
            return [hit.id for hit in shard.search(request)]

        return search

    def close(self) -> None:
        """Close the shard."""
        self._shard.close()


def _filter(condition: Condition | None) -> Any:
    if condition is None:
        return None
    name, value = condition
    return qdrant.Filter(must=[qdrant.FieldCondition(name, match=qdrant.MatchValue(value))])
