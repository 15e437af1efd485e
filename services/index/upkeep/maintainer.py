"""All upkeep of a shard: builds, snapshots, purges, sweeps, gauges, probes, each a task."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Self

from services.index.build.builder import Builder
from services.index.config import IndexSettings
from services.index.log.log import Log
from services.index.log.rows import CollectionRow
from services.index.store.garbage import Garbage
from services.index.store.snapshot import Snapshots
from services.index.upkeep.builds import Builds
from services.index.upkeep.gauges import Gauges
from services.index.upkeep.purges import purges
from services.index.upkeep.recall_probe import RecallProbe
from services.index.upkeep.scratch import Scratch
from services.index.upkeep.snapshots import Snapshotter
from services.index.upkeep.sweeps import sweeps
from services.index.view.follower import Follower
from services.index.view.searcher import Searcher
from services.index.view.view import View


class Maintainer:
    """Keeps the views of a follower in good shape; an async context manager."""

    def __init__(
        self,
        settings: IndexSettings,
        log: Log,
        follower: Follower,
        searcher: Searcher,
        snapshots: Snapshots,
        scratch: Scratch,
        garbage: Garbage,
    ) -> None:
        self._builder = Builder(
            nice=settings.builder_nice,
            threads=settings.builder_threads,
            scratch=scratch.folder / "orders",
        )
        self._builds = Builds(settings, follower, scratch, self._builder)
        self._snapshotter = Snapshotter(follower, snapshots, scratch, settings.snapshot_s)
        self._purges = purges(log, settings.purge_s, settings.tombstone_s)
        self._sweeps = sweeps(log, snapshots, garbage, settings.gc_s)
        self._gauges = Gauges(
            follower,
            folders=settings.folders,
            limits={"scratch": settings.scratch_limit_bytes},
            snapshot_age=self._snapshotter.age_of,
            most_named=settings.metrics_collections,
        )
        self._recall_probe = RecallProbe(
            settings.probe_share, searcher, follower.has, self._gauges.label
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        parts = (
            self._builder,
            self._builds,
            self._snapshotter,
            self._purges,
            self._sweeps,
            self._gauges,
            self._recall_probe,
        )
        async with AsyncExitStack() as stack:
            for part in parts:
                await stack.enter_async_context(part)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def compact(self, view: View, row: CollectionRow) -> None:
        """Merge each partition of the view into one new segment; see `Builds.compact`."""
        await self._builds.compact(view, row)

    async def snapshot(self, view: View) -> tuple[int, str]:
        """Store a snapshot; return its number and its token. See `Snapshotter.snapshot`."""
        return await self._snapshotter.snapshot(view)

    async def drop_snapshots(self, epoch: str) -> None:
        """Remove the snapshots of a deleted collection; what remains only takes room."""
        await self._snapshotter.drop(epoch)
