"""What a shard holds, for those who operate it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mmesh.content import Modality
from services.index.segments.segment import Segment
from services.index.view.follower import Follower
from services.index.view.memory import process_bytes
from services.index.view.view import Block, View


@dataclass(frozen=True, slots=True)
class SegmentState:
    """One block of a partition; see `Segment` in `index.proto`."""

    collection: str
    modality: Modality
    index_factory: str
    rows: int
    deleted: int
    bytes: int
    recall: float
    nprobe: int
    build_seconds: float


@dataclass(frozen=True, slots=True)
class ShardState:
    """All that a process holds; see `GetShardResponse` in `index.proto`."""

    candidates: int
    lag: int
    segments: Sequence[SegmentState]
    memory: Mapping[str, int]
    refused: Sequence[str]

    def only(self, collection: str) -> ShardState:
        """Return the state with the segments of one collection only."""
        return replace(self, segments=[s for s in self.segments if s.collection == collection])


def describe(follower: Follower) -> ShardState:
    """Return the state of what `follower` holds."""
    memory: Counter[str] = Counter()
    segments: list[SegmentState] = []
    candidates = 0
    for view in follower.views.values():
        memory.update(view.memory())
        candidates += sum(view.counts().values())
        segments += _segments(view)
    memory["process"] = process_bytes()
    lag = sum(one.writes for name, one in follower.lags().items() if name in follower.views)
    return ShardState(candidates, lag, segments, memory, sorted(follower.refused))


def _segments(view: View) -> list[SegmentState]:
    return [
        _state(view.name, modality, block)
        for modality, partition in view.partitions.items()
        for block in partition.blocks
    ]


def _state(collection: str, modality: Modality, block: Block) -> SegmentState:
    size = sum(block.memory().values())
    about = (collection, modality)
    if isinstance(block, Segment):
        return SegmentState(
            *about,
            block.index_factory,
            len(block),
            block.dead,
            size,
            block.recall,
            block.nprobe,
            block.build_seconds,
        )
    return SegmentState(*about, "Delta", len(block), block.dead, size, 1.0, 0, 0.0)
