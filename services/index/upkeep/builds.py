"""Compaction: merges the blocks of partitions into segments, one merge at a time.

What is merged is a policy on sizes (`tiers`). Of the partitions with a merge due, the one that has
waited longest is next; one that fails waits alone, with exponential backoff.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from mmesh.content import Modality
from mmesh.errors import MmeshError
from mmesh.serving.backoff import Backoff, Pauses
from mmesh.serving.supervision import Supervised
from mmesh.vectors import FloatMatrix
from services.index import metrics
from services.index.build.builder import BuildOrder, Input
from services.index.build.tiers import Merge, Sizes, next_merge, whole_merge
from services.index.build.worker import DEFAULT_RECALL
from services.index.config import IndexSettings
from services.index.log.rows import CollectionRow
from services.index.segments.segment import Segment
from services.index.upkeep.scratch import Scratch
from services.index.view.follower import Follower
from services.index.view.view import Block, Partition, RowNumbers, View, living_rows

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between looks for work that nothing announces."""
PAUSES = Pauses(first_s=5.0, longest_s=300.0)
"""Before a partition whose merge failed is tried again."""


class SegmentBuilder(Protocol):
    """Builds segments; see `build.builder.Builder`."""

    async def build(self, order: BuildOrder) -> Path:
        """Build what the order says and return its folder."""


class Kept(NamedTuple):
    """Rows that go into a merge."""

    rows: RowNumbers
    bits: bytes
    """The same, as from `Segment.alive_bits`."""


class Place(NamedTuple):
    """A partition by the collection that it belongs to."""

    epoch: str
    modality: Modality


class Builds:
    """Keeps the partitions of all views in good shape; an async context manager."""

    def __init__(
        self,
        settings: IndexSettings,
        follower: Follower,
        scratch: Scratch,
        builder: SegmentBuilder,
        *,
        pauses: Pauses = PAUSES,
        look_s: float = LOOK_S,
    ) -> None:
        self._settings, self._follower, self._look_s = settings, follower, look_s
        self._scratch, self._builder = scratch, builder
        self._merging, self._wake = asyncio.Lock(), asyncio.Event()
        self._backoff: Backoff[Place] = Backoff(pauses)
        self._turns: dict[Place, int] = {}
        """When each partition had its last turn."""
        self._count = itertools.count(1)
        self._task = Supervised("index-builds", self._work)

    async def __aenter__(self) -> Self:
        self._follower.subscribe(self._note_change)
        self._task.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._task.aclose()

    def _note_change(self, view: View) -> None:
        if any(partition.full_deltas for partition in view.partitions.values()):
            self._wake.set()

    async def _work(self) -> None:
        while True:
            if (due := self._next()) is not None:
                await self._try(*due)
            else:
                await self._pause()
            self._task.progress()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._look_s):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    # -- which partition is next

    def _next(self) -> tuple[View, Modality] | None:
        """Return the partition with a merge due whose last turn is longest ago."""
        views = {
            Place(view.epoch, modality): (view, modality)
            for view in [*self._follower.views.values(), *self._follower.loading()]
            for modality in view.partitions
        }
        self._backoff.keep(views)
        self._turns = {place: turn for place, turn in self._turns.items() if place in views}
        due = [p for p in views if self._backoff.is_due(p) and self._merge_due(*views[p])]
        if not due:
            return None
        return views[min(due, key=lambda place: self._turns.get(place, 0))]

    def _merge_due(self, view: View, modality: Modality) -> Merge | None:
        is_quiet = time.monotonic() - view.changed_at >= self._settings.quiet_s
        return next_merge(sizes_of(view.partitions[modality]), is_quiet=is_quiet)

    async def _try(self, view: View, modality: Modality) -> None:
        place = Place(view.epoch, modality)
        self._turns[place] = next(self._count)
        try:
            async with self._merging:
                row, merge = self._follower.row(view.name), self._merge_due(view, modality)
                if merge and row is not None and row.epoch == view.epoch:
                    await self._merge(view, row, modality, merge)
        except Exception as error:  # FAISS, numpy and disks raise all kinds; other partitions go on
            if self._follower.has(view):
                self._note_failure(view, place, error)
        else:
            self._backoff.succeeded(place)

    def _note_failure(self, view: View, place: Place, error: Exception) -> None:
        metrics.build_failures_total.labels(type(error).__name__).inc()
        failures = self._backoff.failed(place)
        about = {"collection": view.name, "modality": place.modality.value, "failures": failures}
        known = isinstance(error, MmeshError | OSError)
        logger.error(
            "a segment could not be built",
            extra={**about, "error": str(error)},
            exc_info=None if known else error,
        )

    # -- merging

    async def compact(self, view: View, row: CollectionRow) -> None:
        """Merge each partition of the view into one new segment, of the kind that `row` wants."""
        async with self._merging:
            for modality, partition in view.partitions.items():
                if merge := whole_merge(sizes_of(partition)):
                    await self._merge(view, row, modality, merge, retrain=True)

    async def _merge(
        self,
        view: View,
        row: CollectionRow,
        modality: Modality,
        merge: Merge,
        *,
        retrain: bool = False,
    ) -> None:
        start, partition = time.perf_counter(), view.partitions[modality]
        output, stage = self._scratch.new("segment"), self._scratch.new("stage")
        unused = [output, stage]
        try:
            sources, kept = await self._follower.apply(_take_sources, partition, merge)
            segment = None
            if any(len(one.rows) for one in kept):
                inputs = await asyncio.to_thread(_written, sources, kept, stage)
                queries = await asyncio.to_thread(partition.recent.sample)
                order = self._order_for(row, inputs, output, queries)
                folder = await self._builder.build(replace(order, retrain=retrain))
                segment = await asyncio.to_thread(
                    Segment.open, folder, self._settings.search_device
                )
            rows = [one.rows for one in kept]

            def swap() -> None:
                nonlocal unused
                partition.replace(sources, rows, segment)
                unused = [stage, *(s.folder for s in sources if isinstance(s, Segment))]

            await _to_its_end(self._follower.apply(swap))
            if segment is None or not self._follower.has(view):  # it was dropped meanwhile
                unused.append(output)
        finally:
            self._scratch.discard(unused)
        metrics.build_seconds.observe(time.perf_counter() - start)
        if segment is not None:
            _tell(view, modality, segment)

    def _order_for(
        self,
        row: CollectionRow,
        inputs: tuple[Input, ...],
        output: Path,
        queries: FloatMatrix | None,
    ) -> BuildOrder:
        return BuildOrder(
            inputs=inputs,
            output=output,
            index_factory=row.settings.index_factory,
            recall_target=row.settings.recall_target or DEFAULT_RECALL,
            device=self._settings.device,
            queries=queries,
        )


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await work that a cancellation does not end: it goes on in its thread, and is waited for."""
    running = asyncio.ensure_future(work)
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


def sizes_of(partition: Partition) -> Sizes:
    """Return the sizes that `tiers` decides by."""
    segments = partition.segments
    full = sum(map(len, partition.full_deltas))
    every = sum(map(len, partition.blocks))
    growing = every - full - sum(map(len, segments))
    return Sizes([len(s) for s in segments], [s.dead for s in segments], full, growing)


def _take_sources(partition: Partition, merge: Merge) -> tuple[list[Block], list[Kept]]:
    """Return the blocks to merge with the rows that are alive now; for the applying thread."""
    if merge.growing:
        partition.seal_delta()
    segments = [s for n, s in enumerate(partition.segments) if n in merge.segments]
    deltas = partition.full_deltas if merge.deltas else ()
    sources: list[Block] = [*segments, *deltas]
    return sources, [Kept(living_rows(source), source.alive_bits()) for source in sources]


def _written(sources: Sequence[Block], kept: Sequence[Kept], stage: Path) -> tuple[Input, ...]:
    """Return the sources as inputs of the builder; deltas are written for the occasion."""
    inputs = []
    for number, (source, (_, bits)) in enumerate(zip(sources, kept, strict=True)):
        if isinstance(source, Segment):
            inputs.append(Input(source.folder, bits))
            continue
        folder = stage / f"delta-{number}"
        folder.mkdir(parents=True)
        source.save(folder)
        inputs.append(Input(folder, bits))
    return tuple(inputs)


def _tell(view: View, modality: Modality, segment: Segment) -> None:
    about = {"collection": view.name, "modality": modality.value, "rows": len(segment)}
    how = {"index": segment.index_factory, "recall": round(segment.recall, 4)}
    logger.info("segment built", extra=about | how)
