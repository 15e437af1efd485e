"""Shards of the index: how many, how much memory and how many cores each process needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmesh.capacity.coefficients import Coefficients
from mmesh.capacity.wishes import MOST_REPLICAS, ImpossibleWish, VectorKind, Wish

SLOTS = 256
"""Parts that candidates are hashed into; a shard has a range of them (services/index/slots.py)."""
MEMORY_SHARE = 0.9
"""Share of a container's memory that an index process uses (services/index/view/memory.py)."""
LOAD_ROW_BYTES = 160
"""What loading sets aside for a row, besides four bytes a dimension (the same file)."""
FLAT_ROWS = 20_000
"""Below so many rows a segment is exact (services/index/build/tuning.py)."""
BUSY = 0.6
"""Share of its cores that a process is planned to use: above it, calls begin to queue."""
LEAST_TRAINING_ROWS, TRAINING_ROWS_A_LIST = 20_000, 50
"""What a segment is trained with (services/index/build/worker.py)."""
TRAINING_COPIES = 3
"""The sample in parts, whole, and what is left of it beside the centres."""
DISK_SPARE = 1.2
GIB = 1 << 30
LEAST_PROCESS = GIB
"""Memory of an index pod, whatever it holds."""
MILLION, MEASURED_DIM = 1_000_000, 384
BUILD_EXPONENT = 1.5
"""Rows are compared with lists, of which there are as many as the root of the rows."""
VECTOR_BYTES = {
    VectorKind.FLOAT16: 2.25,
    VectorKind.FLOAT32: 4.25,
    VectorKind.INT8: 1.0,
    VectorKind.FLAT: 4.0,
}
"""Bytes of a dimension in a segment, by arithmetic."""
FACTORIES = {
    VectorKind.FLOAT16: "",
    VectorKind.FLOAT32: "IVF{lists},PQ{half}x4fs,RFlat",
    VectorKind.INT8: "IVF{lists},SQ8",
    VectorKind.FLAT: "Flat",
}


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Shards, and each process that holds one."""

    shards: int
    replicas: int
    rows: int
    """Most rows of a shard."""
    cores: int
    memory_bytes: int
    used_bytes: int
    """Memory between builds and loads."""
    scratch_bytes: int
    """Disk for segments."""
    search_ms: float
    """CPU time of a search in one shard."""
    load_snapshot_s: float
    load_log_s: float
    build_s: float
    index_factory: str
    """Setting of the collection; empty for the default."""


def plan_index(wish: Wish, measured: Coefficients) -> ShardPlan:
    """Return the fewest shards whose processes keep to the sizes of pods that are allowed.

    Raises:
        ImpossibleWish: even 256 shards are too few, or 16 replicas.
    """
    shards = _fewest_shards(wish, measured)
    rows = rows_of_shard(wish.rows, shards)
    milliseconds = search_ms(wish, rows, measured)
    cores = wish.qps * milliseconds / 1000 / BUSY
    replicas = max(wish.replicas, math.ceil(cores / wish.pod_cores))
    if replicas > MOST_REPLICAS:
        raise ImpossibleWish(_too_slow(wish, shards, milliseconds, cores))
    scale = rows / MILLION * wish.dim / MEASURED_DIM
    return ShardPlan(
        shards=shards,
        replicas=replicas,
        rows=rows,
        cores=max(1, math.ceil(cores / replicas)),
        memory_bytes=process_bytes(wish, rows, measured),
        used_bytes=used_bytes(wish, rows, measured),
        scratch_bytes=int(2 * DISK_SPARE * rows * row_bytes(wish, measured)),
        search_ms=milliseconds,
        load_snapshot_s=measured["load-process-s"] + measured["load-snapshot-s"] * scale,
        load_log_s=measured["load-process-s"] + measured["load-log-s"] * scale,
        build_s=_build_s(rows * max(wish.modalities.values()), wish, measured),
        index_factory=_factory(wish, rows),
    )


def rows_of_shard(rows: int, shards: int) -> int:
    """Return the most rows of a shard; slots are whole, so shards are not all of one size."""
    return math.ceil(rows * math.ceil(SLOTS / shards) / SLOTS)


def row_bytes(wish: Wish, measured: Coefficients) -> float:
    """Return the memory of a row in a segment; its disk is the same."""
    return VECTOR_BYTES[wish.vectors] * wish.dim + measured["index-row-bytes"]


def used_bytes(wish: Wish, rows: int, measured: Coefficients) -> int:
    """Return the memory of a process that holds so many rows in segments."""
    return int(measured["index-process-bytes"] + rows * row_bytes(wish, measured))


def process_bytes(wish: Wish, rows: int, measured: Coefficients) -> int:
    """Return the memory that a process of so many rows must be given."""
    return max(LEAST_PROCESS, int(most_bytes(wish, rows, measured) / MEMORY_SHARE))


def most_bytes(wish: Wish, rows: int, measured: Coefficients) -> float:
    """Return the most memory that a process of so many rows uses, with its builder.

    It loads only what fits as float32; while all is merged, a builder beside it has as much again.
    """
    loading = measured["index-process-bytes"] + rows * (4 * wish.dim + LOAD_ROW_BYTES)
    merging = 2 * used_bytes(wish, rows, measured) + training_bytes(wish, rows)
    return max(loading, merging)


def training_bytes(wish: Wish, rows: int) -> float:
    """Return the memory of what a builder trains the largest segment of so many rows with."""
    largest = rows * max(wish.modalities.values())
    if largest < FLAT_ROWS or wish.vectors is VectorKind.FLAT:
        return 0
    sample = min(largest, max(LEAST_TRAINING_ROWS, TRAINING_ROWS_A_LIST * _lists(largest)))
    return TRAINING_COPIES * sample * 4 * wish.dim


def search_ms(wish: Wish, rows: int, measured: Coefficients) -> float:
    """Return the CPU time of a search among so many rows of all modalities, with its call."""
    shares = [share for share in wish.modalities.values() if share]
    parts = [_part_ms(share * rows, wish, measured) for share in shares]
    return measured["index-call-ms"] + sum(parts)


def _part_ms(rows: float, wish: Wish, measured: Coefficients) -> float:
    """Return the CPU time of a search in one segment."""
    width = wish.dim / MEASURED_DIM
    if rows < FLAT_ROWS or wish.vectors is VectorKind.FLAT:
        return measured["search-flat-ms"] * rows / 10_000 * width
    million, tenth = measured["search-million-ms"], measured["search-hundred-thousand-ms"]
    return million * math.pow(rows / MILLION, math.log10(million / tenth)) * width


def _build_s(rows: float, wish: Wish, measured: Coefficients) -> float:
    """Return how long one thread builds a segment: up to a million rows it trains, then it adds."""
    million, tenth = measured["build-million-s"], measured["build-hundred-thousand-s"]
    exponent = BUILD_EXPONENT if rows > MILLION else math.log10(million / tenth)
    return million * math.pow(rows / MILLION, exponent) * wish.dim / MEASURED_DIM


def _fewest_shards(wish: Wish, measured: Coefficients) -> int:
    for shards in range(1, SLOTS + 1):
        needed = process_bytes(wish, rows_of_shard(wish.rows, shards), measured)
        if needed <= wish.pod_memory_gib * GIB:
            return shards
    least = math.ceil(process_bytes(wish, rows_of_shard(wish.rows, SLOTS), measured) / GIB)
    raise ImpossibleWish(
        f"{wish.rows:,} rows of {wish.dim} do not fit into {SLOTS} shards, the most that a mesh "
        f"has, in pods of {wish.pod_memory_gib:g} GiB; possible are --pod-memory {least}, "
        "a smaller --dim, or several meshes"
    )


def _too_slow(wish: Wish, shards: int, milliseconds: float, cores: float) -> str:
    return (
        f"each of {shards} shards would compute {milliseconds:,.1f} ms for a search, so "
        f"{wish.qps:g} a second need {math.ceil(cores):,} cores, more than {MOST_REPLICAS} "
        f"replicas of {wish.pod_cores} have; possible are a greater --pod-cores, or a smaller "
        "--pod-memory, which makes more and smaller shards"
    )


def _factory(wish: Wish, rows: int) -> str:
    return FACTORIES[wish.vectors].format(lists=_lists(rows), half=wish.dim // 2)


def _lists(rows: float) -> int:
    """Return the lists of a segment of so many rows (services/index/build/tuning.py)."""
    return 1 << max(1, round(math.log2(2 * math.sqrt(rows))))
