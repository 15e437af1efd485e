"""A plan: pods, disks, GPUs and durations of a mesh that does what is wished."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmesh.capacity.coefficients import Coefficient, Coefficients
from mmesh.capacity.index_plan import BUSY, DISK_SPARE, GIB, MEASURED_DIM, ShardPlan, plan_index
from mmesh.capacity.notes import notes_of
from mmesh.capacity.wishes import Gpu, Wish

MEMORY_SPARE = 1.5
"""Memory that is requested, beside what was seen."""
LOG_SPARE = 1.5
"""Disk of the log beside its rows: pages that are not full, indexes, what is to be vacuumed."""
SNAPSHOTS_KEPT = 3
"""The default of the setting; each is a whole copy at worst, after a merge of everything."""
LEAST_GATEWAY, LEAST_MODEL = 2 * GIB, 2 * GIB
"""What k8s/base requests."""
GPU_POD_CORES, GPU_POD_MEMORY = 4, 32 * GIB
"""What the component `gpu` requests."""
MODEL_CORES = 4
"""Cores of a pod that runs a model on CPU."""


@dataclass(frozen=True, slots=True)
class Pods:
    """Pods of one kind, all alike."""

    name: str
    count: int
    cores: int
    memory_bytes: int
    gpus: int
    """Of each."""
    scratch_bytes: int
    reason: str
    """What decides how many there are."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Room for what lasts."""

    name: str
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Duration:
    """How long something will take."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What the mesh is made of, and what that rests on."""

    wish: Wish
    index: ShardPlan
    pods: tuple[Pods, ...]
    disks: tuple[Disk, ...]
    durations: tuple[Duration, ...]
    notes: tuple[str, ...]
    """What is extrapolated, assumed or left out."""
    coefficients: tuple[Coefficient, ...]
    """What was reckoned with."""

    @property
    def gpus(self) -> int:
        """GPUs of all pods."""
        return sum(one.count * one.gpus for one in self.pods)

    @property
    def cores(self) -> int:
        """Cores of all pods."""
        return sum(one.count * one.cores for one in self.pods)

    @property
    def memory_bytes(self) -> int:
        """Memory of all pods."""
        return sum(one.count * one.memory_bytes for one in self.pods)


def plan(wish: Wish, measured: Coefficients | None = None) -> Plan:
    """Return what a wish takes.

    Raises:
        ImpossibleWish: no mesh does it.
    """
    measured = measured or Coefficients.load()
    index = plan_index(wish, measured)
    pods = [_gateways(wish, index, measured), _index_pods(index), _encoders(wish, measured)]
    if wish.reranked:
        pods.append(_rerankers(wish, measured))
    return Plan(
        wish,
        index,
        tuple(pods),
        _disks(wish, index, measured),
        _durations(wish, index, pods[2], measured),
        tuple(notes_of(wish, index)),
        tuple(measured.used.values()),
    )


def _gateways(wish: Wish, index: ShardPlan, measured: Coefficients) -> Pods:
    more = measured["gateway-shard-ms"] * (index.shards - 2)
    milliseconds = measured["gateway-ms"] + more
    cores = wish.qps * milliseconds / 1000 / BUSY  # one event loop uses one core
    memory = max(LEAST_GATEWAY, int(MEMORY_SPARE * measured["gateway-bytes"]))
    reason = f"{milliseconds:.1f} ms of CPU a search, at most"
    return Pods("gateway", _at_least(wish, cores), 1, memory, 0, 0, reason)


def _index_pods(index: ShardPlan) -> Pods:
    reason = (
        f"{index.shards} shards of {index.rows:,} rows, {index.replicas} times; "
        f"{index.search_ms:.1f} ms of CPU a search"
    )
    return Pods(
        "index",
        index.shards * index.replicas,
        index.cores,
        index.memory_bytes,
        0,
        index.scratch_bytes,
        reason,
    )


def _encoders(wish: Wish, measured: Coefficients) -> Pods:
    """Size them for queries, taken as texts; what a fill of the index takes is a duration."""
    if wish.gpu is not Gpu.NONE:
        rate = measured["gpu-encoder-texts"]
        return _gpu_pods("encoder", wish, wish.qps / rate, f"{rate:.0f} queries a second and GPU")
    rate = measured["encoder-texts"]
    reason = f"{rate:.0f} queries a second and core"
    memory = int(MEMORY_SPARE * measured["encoder-bytes"])
    return _cpu_pods("encoder", wish, wish.qps / rate, memory, reason)


def _rerankers(wish: Wish, measured: Coefficients) -> Pods:
    pairs = wish.qps * wish.reranked
    if wish.gpu is not Gpu.NONE:
        seconds = _gpu_seconds(wish, measured)
        reason = f"{pairs:,.0f} pairs a second, {1 / seconds:.0f} a GPU"
        return _gpu_pods("reranker", wish, pairs * seconds, reason)
    reason = f"{pairs:,.0f} pairs a second, {measured['judge-ms']:.0f} ms of a core each, at most"
    memory = int(MEMORY_SPARE * measured["reranker-bytes"])
    return _cpu_pods("reranker", wish, pairs * measured["judge-ms"] / 1000, memory, reason)


def _gpu_seconds(wish: Wish, measured: Coefficients) -> float:
    """Return what a candidate takes a GPU that embeds it, or judges it with as many parameters."""
    text = wish.text_share / measured["gpu-encoder-texts"]
    return text + wish.picture_share / measured["gpu-encoder-pictures"]


def _cpu_seconds(wish: Wish, measured: Coefficients) -> float:
    """Return what a candidate takes a core that embeds it."""
    text = wish.text_share / measured["encoder-texts"]
    return text + wish.picture_share / measured["encoder-pictures"]


def _gpu_pods(name: str, wish: Wish, gpus: float, reason: str) -> Pods:
    count = _at_least(wish, gpus / BUSY)
    return Pods(name, count, GPU_POD_CORES, GPU_POD_MEMORY, 1, 0, reason)


def _cpu_pods(name: str, wish: Wish, cores: float, memory: int, reason: str) -> Pods:
    each = min(MODEL_CORES, max(1, math.ceil(cores / BUSY)))
    count = _at_least(wish, cores / BUSY / each)
    return Pods(name, count, each, max(LEAST_MODEL, memory), 0, 0, reason)


def _at_least(wish: Wish, count: float) -> int:
    """Return so many pods, and two where nothing shall hang on a single one."""
    return max(2 if wish.replicas > 1 else 1, math.ceil(count))


def _disks(wish: Wish, index: ShardPlan, measured: Coefficients) -> tuple[Disk, ...]:
    row = log_row_bytes(wish, measured)
    pictures = wish.rows * wish.picture_share * wish.picture_kb * 1000
    segments = index.scratch_bytes / DISK_SPARE / 2 * index.shards
    return (
        Disk(
            "log (PostgreSQL)",
            int(wish.rows * row),
            f"{row:,.0f} bytes a row, with room for pages and indexes",
        ),
        Disk("pictures (S3)", int(pictures), f"{wish.picture_kb:g} kB each"),
        Disk("snapshots (S3)", int(SNAPSHOTS_KEPT * segments), f"{SNAPSHOTS_KEPT} kept, at most"),
        Disk("segments (emptyDir)", index.scratch_bytes, "of each index pod"),
    )


def log_row_bytes(wish: Wish, measured: Coefficients) -> float:
    """Return the disk of a row of the log."""
    text = wish.text_share * wish.text_bytes
    return LOG_SPARE * (4 * wish.dim + text + measured["log-row-bytes"])


def _durations(
    wish: Wish, index: ShardPlan, encoders: Pods, measured: Coefficients
) -> tuple[Duration, ...]:
    if wish.gpu is not Gpu.NONE:
        encoding = _gpu_seconds(wish, measured) / encoders.count
    else:
        encoding = _cpu_seconds(wish, measured) / (encoders.count * encoders.cores)
    width = max(1.0, wish.dim / MEASURED_DIM)
    return (
        Duration("encoding all candidates once, with these encoders", wish.rows * encoding),
        Duration("writing all to the log", wish.rows * width / measured["log-rows-a-second"]),
        Duration("building a shard's largest segment", index.build_s),
        Duration("starting an index pod from a snapshot", index.load_snapshot_s),
        Duration("loading a new shard set from the log", index.load_log_s),
    )
