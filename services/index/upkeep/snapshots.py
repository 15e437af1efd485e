"""Periodic snapshots of the views that changed, one collection at a time."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from pathlib import Path
from typing import Self

from mmesh.errors import CollectionNotFound, FailedPrecondition, MmeshError
from mmesh.serving.backoff import Backoff, Pauses
from mmesh.serving.supervision import Supervised
from mmesh.values.tokens import Token
from services.index import metrics
from services.index.log.rows import CollectionRow
from services.index.point import Point
from services.index.segments.segment import Segment
from services.index.store.snapshot import SnapshotContent, Snapshots, SnapshotSegment
from services.index.upkeep.scratch import Scratch
from services.index.view.follower import Follower
from services.index.view.view import View

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Longest time between looks for collections that are due."""
PAUSES = Pauses(first_s=5.0, longest_s=600.0)
"""Before a collection whose snapshot failed is tried again."""


class Snapshotter:
    """Stores a snapshot of each collection that changed, every so often; a context manager.

    Args:
        follower: has the views.
        snapshots: where snapshots are stored.
        scratch: where they are put together.
        interval_s: seconds between snapshots of a collection; 0: only those that are asked for.
        pauses: before a collection that failed is tried again; others do not wait for it.
    """

    def __init__(
        self,
        follower: Follower,
        snapshots: Snapshots,
        scratch: Scratch,
        interval_s: float,
        *,
        pauses: Pauses = PAUSES,
    ) -> None:
        self._follower, self._snapshots, self._scratch = follower, snapshots, scratch
        self._interval_s = interval_s
        self._backoff: Backoff[str] = Backoff(pauses)
        self._since: dict[str, float] = {}
        """When each collection's last snapshot was stored, or it was first seen; by epoch."""
        self._task = Supervised("index-snapshots", self._work)

    async def __aenter__(self) -> Self:
        if self._interval_s:
            self._task.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._task.aclose()

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK_S, self._interval_s))
            for view in self._due():
                await self._try(view)
            self._task.progress()

    def _due(self) -> list[View]:
        """Return the views to store now, the one that has waited longest first."""
        views, now = list(self._follower.views.values()), time.monotonic()
        self._since = {view.epoch: self._since.get(view.epoch, now) for view in views}
        self._backoff.keep(self._since)
        due = [
            view
            for view in views
            if view.applied > view.stored
            and now - self._since[view.epoch] >= self._interval_s
            and self._backoff.is_due(view.epoch)
        ]
        return sorted(due, key=lambda view: self._since[view.epoch])

    def age_of(self, view: View) -> float:
        """Return the seconds since a view was stored or found; 0 where there is nothing to store.

        0, too, where none are stored by themselves.
        """
        since = self._since.get(view.epoch)
        return 0.0 if since is None or view.applied <= view.stored else time.monotonic() - since

    async def _try(self, view: View) -> None:
        try:
            await self._store(view)
        except CollectionNotFound:
            logger.info("no snapshot of what is gone", extra={"collection": view.name})
        except Exception as error:  # stores and disks raise all kinds; other collections go on
            if self._follower.has(view):
                self._note_failure(view, error)
        else:
            self._backoff.succeeded(view.epoch)

    def _note_failure(self, view: View, error: Exception) -> None:
        metrics.snapshot_failures_total.labels("not_stored").inc()
        failures = self._backoff.failed(view.epoch)
        known = isinstance(error, MmeshError | OSError)
        logger.error(
            "a snapshot could not be stored",
            extra={"collection": view.name, "failures": failures, "error": str(error)},
            exc_info=None if known else error,
        )

    async def snapshot(self, view: View) -> tuple[int, str]:
        """Store a snapshot; return its number and the token of its state.

        Raises:
            CollectionNotFound: it was deleted.
            FailedPrecondition: another replica stored one at the same time.
            Unavailable, StorageFull: it could not be stored; those before are as they were.
        """
        number, at = await self._store(view)
        if number is None:
            raise FailedPrecondition("another replica stored a snapshot at the same time")
        return number, str(Token(view.epoch, *at))

    async def _store(self, view: View) -> tuple[int | None, Point]:
        """Store a snapshot; return its number (None: another replica was first) and its place."""
        await self._check_exists(view)
        try:
            stored = await self._save(view)
        except Exception:
            await self._check_exists(view)
            raise
        await self._check_exists(view)
        return stored

    async def _check_exists(self, view: View) -> None:
        """Raise `CollectionNotFound` after a deletion, and leave nothing in the store."""
        row = self._follower.row(view.name)
        if row is None or row.epoch != view.epoch:
            await self.drop(view.epoch)
            raise CollectionNotFound(view.name)

    async def _save(self, view: View) -> tuple[int | None, Point]:
        start, stage = time.perf_counter(), self._scratch.new("stage")
        row, slots = self._follower.collections[view.name], self._follower.slots
        try:
            content = await self._follower.apply(_freeze, view, row, slots, stage)
            number = await asyncio.to_thread(self._snapshots.save, content)
        finally:
            self._scratch.discard([stage])
        view.stored = max(view.stored, content.seq)
        self._since[view.epoch] = time.monotonic()
        if number is not None:
            metrics.snapshot_seconds.observe(time.perf_counter() - start)
            await self._prune(view, slots)
        outcome = "snapshot stored" if number is not None else "another replica stored a snapshot"
        logger.info(outcome, extra={"collection": view.name, "number": number})
        return number, Point(content.seq, content.stamp)

    async def _prune(self, view: View, slots: range) -> None:
        """Remove older snapshots; those that remain only take room."""
        try:
            await asyncio.to_thread(self._snapshots.prune, view.epoch, slots)
        except Exception as error:  # the new one is stored all the same
            metrics.snapshot_failures_total.labels("not_removed").inc()
            logger.warning("snapshots could not be removed", extra={"error": str(error)})

    async def drop(self, epoch: str) -> None:
        """Remove the snapshots of a deleted collection; what remains only takes room."""
        try:
            await asyncio.to_thread(self._snapshots.drop, epoch)
        except Exception as error:  # the collection is deleted all the same
            metrics.snapshot_failures_total.labels("not_removed").inc()
            logger.warning("snapshots could not be removed", extra={"error": str(error)})


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
        view.name,
        view.epoch,
        view.dim,
        row.model_fingerprint,
        slots,
        view.at.seq,
        frozen,
        view.at.stamp,
    )


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)
