"""Restoring views from snapshots, and removing what views leave on the disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmesh.content import Modality
from mmesh.errors import LogUnavailable
from services.index import metrics
from services.index.log.rows import CollectionRow
from services.index.point import Point
from services.index.segments.segment import Segment
from services.index.store.manifest import Manifest
from services.index.store.snapshot import Loaded, Snapshots
from services.index.upkeep.scratch import Scratch
from services.index.view.view import View

logger = logging.getLogger(__name__)


Holds = Callable[[CollectionRow, Point], bool | None]
"""Tells whether the log of a collection has a write; see `Log.holds`."""


class Restorer:
    """Where a shard's views come from: its newest sound snapshots, in folders of this machine.

    Snapshots of which `holds` does not say that the log has what they reflect are passed over.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        scratch: Scratch,
        slots: range,
        *,
        delta_rows: int,
        device: str,
        holds: Holds | None = None,
    ) -> None:
        self._holds = holds
        self._snapshots, self._scratch, self._slots = snapshots, scratch, slots
        self._delta_rows, self._device = delta_rows, device

    async def restore(self, row: CollectionRow) -> View | None:
        """Return a view from the newest sound snapshot of the collection, or None.

        Raises:
            LogUnavailable: it cannot be told whether the log has what a snapshot reflects.
        """
        into = self._scratch.new("snapshot")
        view, away = None, list[LogUnavailable]()
        try:
            view = await self._restore(row, into, away)
        except Exception as error:  # whatever is wrong with it, the log has it all
            metrics.snapshot_failures_total.labels("not_restored").inc()
            about = {"collection": row.name}
            logger.error("a snapshot cannot be restored", extra=about, exc_info=error)
        finally:
            if view is None:
                self._scratch.discard([into])
        if view is None and away:  # it may be sound: better wait than read all of the log
            raise away[0]
        return view

    async def _restore(
        self, row: CollectionRow, into: Path, away: list[LogUnavailable]
    ) -> View | None:
        loaded = await asyncio.to_thread(
            self._snapshots.load_newest,
            row.epoch,
            self._slots,
            into,
            dim=row.dim,
            at_least_seq=row.purged,
            is_wanted=partial(self._is_of_the_log, row, away),
        )
        if loaded is None:
            return None
        segments = await asyncio.to_thread(self._open, loaded)
        logger.info("restored", extra={"collection": row.name, "snapshot": loaded.number})
        return View(
            row.name, row.epoch, row.dim, self._delta_rows, loaded.at, segments, stored=loaded.seq
        )

    def _is_of_the_log(
        self, row: CollectionRow, away: list[LogUnavailable], manifest: Manifest
    ) -> bool:
        """Tell whether the log has what a snapshot reflects: it may have been put back since."""
        try:
            if self._holds is None or self._holds(row, manifest.at):
                return True
        except LogUnavailable as error:
            away.append(error)
            return False
        metrics.histories_lost_total.labels("snapshot").inc()
        about = {"collection": row.name, "snapshot": manifest.number, "seq": manifest.seq}
        logger.warning("a snapshot of what the log does not have is passed over", extra=about)
        return False

    def _open(self, loaded: Loaded) -> dict[Modality, list[Segment]]:
        segments: dict[Modality, list[Segment]] = {}
        for stored in loaded.segments:
            segment = Segment.open(stored.folder, self._device)
            segment.set_alive(stored.alive_bits)
            segments.setdefault(stored.modality, []).append(segment)
        return segments

    def discard(self, view: View) -> None:
        """Remove the folders of a view that nobody uses any more."""
        partitions = view.partitions.values()
        self._scratch.discard([s.folder for p in partitions for s in p.segments])
