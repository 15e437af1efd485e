"""Work in the background: building segments, storing snapshots, purging the log."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

from mmesh.content import Modality
from mmesh.errors import DataLoss, FailedPrecondition, MmeshError, StorageFull, Unavailable
from mmesh.vectors import FloatMatrix
from services.index import metrics
from services.index.build.builder import Builder, BuildFailed, BuildOrder, Input
from services.index.build.tiers import Merge, Sizes, next_merge, whole_merge
from services.index.build.worker import DEFAULT_RECALL
from services.index.config import IndexSettings
from services.index.log.log import Log
from services.index.log.rows import CollectionRow
from services.index.segments.segment import Segment
from services.index.store.snapshot import Loaded, SnapshotContent, Snapshots, SnapshotSegment
from services.index.upkeep.scratch import Scratch
from services.index.view.follower import Follower
from services.index.view.view import Block, Partition, RowNumbers, View, living_rows

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
LOOK_S = 1.0
"""Seconds between looks for work that nothing announces."""
PAUSE_S = 5.0
"""Pause after a failure."""


class Maintainer:
    """Keeps the views of a follower in good shape; an async context manager."""

    def __init__(
        self,
        settings: IndexSettings,
        log: Log,
        follower: Follower,
        snapshots: Snapshots,
        scratch: Scratch,
    ) -> None:
        self._settings, self._log, self._follower = settings, log, follower
        self._snapshots, self._scratch = snapshots, scratch
        self._builder = Builder(
            nice=settings.builder_nice,
            threads=settings.builder_threads,
            scratch=scratch.folder / "orders",
        )
        self._building = asyncio.Lock()
        self._wake = asyncio.Event()
        self._changed_at = time.monotonic()
        self._stored: dict[str, tuple[float, int]] = {}
        """When each collection's last snapshot was stored, and its sequence; by epoch."""
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._follower.restore, self._follower.changed = self.restore, self.note_change
        self._follower.dropped = self._remove_folders
        loops = [self._build_for_ever, self._purge_for_ever]
        loops += [self._snapshot_for_ever] if self._settings.snapshot_s else []
        self._tasks = [asyncio.create_task(loop()) for loop in loops]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._builder.__aexit__(None, None, None)

    def note_change(self) -> None:
        """Take note that rows were applied."""
        self._changed_at = time.monotonic()
        self._wake.set()

    def _remove_folders(self, view: View) -> None:
        segments = [s for partition in view.partitions.values() for s in partition.segments]
        self._scratch.remove([segment.folder for segment in segments])

    # -- segments

    async def _build_for_ever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                while await self._build_something():
                    pass
            except (BuildFailed, OSError, MmeshError) as error:
                metrics.build_failures_total.inc()
                logger.error("a segment could not be built", extra={"error": str(error)})
                await asyncio.sleep(PAUSE_S)

    async def _build_something(self) -> bool:
        """Do the merge that is due where most rows wait; return whether there was one."""
        quiet = time.monotonic() - self._changed_at >= self._settings.quiet_s
        due = []
        for view in [*self._follower.views.values(), *self._follower.loading()]:
            for modality, partition in view.partitions.items():
                sizes = sizes_of(partition)
                if merge := next_merge(sizes, is_quiet=quiet):
                    due.append((sizes.full_deltas, view, modality, merge))
        if not due:
            return False
        _, view, modality, merge = max(due, key=lambda entry: entry[0])
        row = self._follower.row(view.name)
        if row is None or row.epoch != view.epoch:  # deleted since the follower looked
            return False
        async with self._building:
            await self._merge(view, row, modality, merge)
        return True

    async def compact(self, view: View, row: CollectionRow) -> None:
        """Merge each partition of the view into one new segment, of the kind that `row` wants."""
        async with self._building:
            for modality, partition in view.partitions.items():
                if merge := whole_merge(sizes_of(partition)):
                    await self._merge(view, row, modality, merge)

    async def _merge(
        self, view: View, row: CollectionRow, modality: Modality, merge: Merge
    ) -> None:
        start = time.perf_counter()
        partition, output = view.partitions[modality], self._scratch.new("segment")
        sources, kept = await self._apply(_take_sources, partition, merge)
        folders = [await asyncio.to_thread(self._folder_of, source) for source in sources]
        segment = None
        if any(len(rows) for rows, _ in kept):
            inputs = tuple(Input(f, bits) for f, (_, bits) in zip(folders, kept, strict=True))
            queries = await asyncio.to_thread(partition.recent.sample)
            order = self._order_for(row, inputs, output, queries)
            folder = await self._builder.build(order)
            segment = await asyncio.to_thread(Segment.open, folder, self._search_device)
        await self._apply(partition.replace, sources, [rows for rows, _ in kept], segment)
        await asyncio.to_thread(self._scratch.remove, folders)
        if not self._follower.has(view):  # it was dropped meanwhile
            self._remove_folders(view)
        metrics.build_seconds.observe(time.perf_counter() - start)
        self._tell(view, modality, segment)

    @property
    def _search_device(self) -> str:
        return "cuda" if self._settings.device == "cuda" else "cpu"

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

    def _folder_of(self, source: Block) -> Path:
        """Return the folder of a source's rows; a delta's is written for the occasion."""
        if isinstance(source, Segment):
            return source.folder
        folder = self._scratch.new("delta")
        folder.mkdir()
        source.save(folder)
        return folder

    def _tell(self, view: View, modality: Modality, segment: Segment | None) -> None:
        partitions = view.partitions.values()
        metrics.segments.labels(view.name).set(sum(len(p.segments) for p in partitions))
        if segment is None:
            return
        metrics.segment_recall.labels(view.name, modality.value).set(segment.recall)
        about = {"collection": view.name, "modality": modality.value, "rows": len(segment)}
        how = {"index": segment.index_factory, "recall": round(segment.recall, 4)}
        logger.info("segment built", extra=about | how)

    # -- snapshots

    async def restore(self, row: CollectionRow) -> View | None:
        """Return a view from the newest sound snapshot of the collection, or None."""
        into = self._scratch.new("snapshot")
        try:
            loaded = await asyncio.to_thread(
                self._snapshots.load_newest, row.epoch, self._follower.slots, into,
                dim=row.dim, at_least_seq=row.purged,
            )  # fmt: skip
            if loaded is None:
                return None
            if loaded.seq > row.seq:  # the log was put back to an older state
                self._scratch.remove([into])
                return None
            segments = await asyncio.to_thread(self._open, loaded)
        except (Unavailable, StorageFull, DataLoss) as error:  # the log has it all
            metrics.snapshot_failures_total.labels("not_restored").inc()
            logger.error("a snapshot cannot be restored", extra={"error": error.message})
            self._scratch.remove([into])
            return None
        logger.info("restored", extra={"collection": row.name, "snapshot": loaded.number})
        self._stored[row.epoch] = (time.monotonic(), loaded.seq)
        delta_rows = self._settings.seal_rows
        return View(row.name, row.epoch, row.dim, delta_rows, loaded.seq, segments)

    def _open(self, loaded: Loaded) -> dict[Modality, list[Segment]]:
        segments: dict[Modality, list[Segment]] = {}
        for stored in loaded.segments:
            segment = Segment.open(stored.folder, self._search_device)
            segment.set_alive(stored.alive_bits)
            segments.setdefault(stored.modality, []).append(segment)
        return segments

    async def drop_snapshots(self, epoch: str) -> None:
        """Remove the snapshots of a deleted collection; what remains only takes room."""
        try:
            await asyncio.to_thread(self._snapshots.drop, epoch)
        except (Unavailable, OSError) as error:
            logger.warning("snapshots could not be removed", extra={"error": str(error)})

    async def _snapshot_for_ever(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK_S, self._settings.snapshot_s))
            for view in [*self._follower.views.values()]:
                if self._is_snapshot_due(view):
                    await self._try_snapshot(view)

    def _is_snapshot_due(self, view: View) -> bool:
        stored_at, seq = self._stored.setdefault(view.epoch, (time.monotonic(), 0))
        return view.applied > seq and time.monotonic() - stored_at >= self._settings.snapshot_s

    async def _try_snapshot(self, view: View) -> None:
        try:
            await self.snapshot(view)
        except (MmeshError, OSError) as error:
            self._stored[view.epoch] = (time.monotonic(), self._stored[view.epoch][1])
            metrics.snapshot_failures_total.labels("not_stored").inc()
            logger.error("a snapshot could not be stored", extra={"error": str(error)})

    async def snapshot(self, view: View) -> tuple[int, str]:
        """Store a snapshot; return its number and the token of its state.

        Raises:
            FailedPrecondition: another replica stored one at the same time.
            Unavailable, StorageFull: it could not be stored; those before are as they were.
        """
        row = self._follower.row(view.name)
        stage = self._scratch.new("stage")
        start = time.perf_counter()
        try:
            content = await self._apply(_freeze, view, row, self._follower.slots, stage)
            number = await asyncio.to_thread(self._snapshots.save, content)
        finally:
            await asyncio.to_thread(shutil.rmtree, stage, ignore_errors=True)
        self._stored[view.epoch] = (time.monotonic(), content.seq)
        if number is None:
            raise FailedPrecondition("another replica stored a snapshot at the same time")
        await asyncio.to_thread(self._snapshots.prune, view.epoch, self._follower.slots)
        metrics.snapshot_seconds.observe(time.perf_counter() - start)
        logger.info("snapshot stored", extra={"collection": view.name, "number": number})
        return number, f"{view.epoch}:{content.seq}"

    # -- log

    async def _purge_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.purge_s * random.uniform(0.75, 1.25))
            try:
                gone = await asyncio.to_thread(self._log.purge, self._settings.tombstone_s)
                logger.info("purged", extra={"deletions": gone})
            except MmeshError as error:
                logger.warning("the log cannot be purged", extra={"error": error.message})

    async def _apply(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Run on the thread that changes views, so that nothing changes meanwhile."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._follower.applier, work, *arguments)


def sizes_of(partition: Partition) -> Sizes:
    """Return the sizes that `tiers` decides by."""
    segments = partition.segments
    full = sum(map(len, partition.full_deltas))
    every = sum(map(len, partition.blocks))
    growing = every - full - sum(map(len, segments))
    return Sizes([len(s) for s in segments], [s.dead for s in segments], full, growing)


Kept = tuple[RowNumbers, bytes]
"""Rows that go into a merge, as numbers and as bits."""


def _take_sources(partition: Partition, merge: Merge) -> tuple[list[Block], list[Kept]]:
    """Return the blocks to merge with the rows that are alive now; for the applying thread."""
    if merge.growing:
        partition.seal_delta()
    segments = [s for n, s in enumerate(partition.segments) if n in merge.segments]
    deltas = partition.full_deltas if merge.deltas else ()
    sources: list[Block] = [*segments, *deltas]
    return sources, [(living_rows(source), source.alive_bits()) for source in sources]


def _freeze(view: View, row: CollectionRow, slots: range, stage: Path) -> SnapshotContent:
    """Link what the view holds into a folder where no merge removes it; for the applying thread."""
    stage.mkdir()
    frozen = []
    for modality, partition in view.partitions.items():
        for number, block in enumerate(b for b in partition.blocks if len(b)):
            folder = stage / f"{modality.value}-{number}"
            if isinstance(block, Segment):
                shutil.copytree(block.folder, folder, copy_function=_link)
            else:
                folder.mkdir()
                block.save(folder)
            frozen.append(SnapshotSegment(modality, folder, block.alive_bits()))
    return SnapshotContent(
        view.name, view.epoch, view.dim, row.model_fingerprint, slots, view.applied, frozen
    )


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)
