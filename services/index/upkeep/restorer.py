"""Restoring views from snapshots, and removing what views leave on the disk."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from mmesh.content import Modality
from services.index import metrics
from services.index.log.rows import CollectionRow
from services.index.segments.segment import Segment
from services.index.store.snapshot import Loaded, Snapshots
from services.index.upkeep.scratch import Scratch
from services.index.view.view import View

logger = logging.getLogger(__name__)


class Restorer:
    """Where a shard's views come from: its newest sound snapshots, in folders of this machine."""

    def __init__(
        self, snapshots: Snapshots, scratch: Scratch, slots: range, *, delta_rows: int, device: str
    ) -> None:
        self._snapshots, self._scratch, self._slots = snapshots, scratch, slots
        self._delta_rows, self._device = delta_rows, device

    async def restore(self, row: CollectionRow) -> View | None:
        """Return a view from the newest sound snapshot of the collection, or None."""
        into = self._scratch.new("snapshot")
        view = None
        try:
            view = await self._restore(row, into)
        except Exception as error:  # whatever is wrong with it, the log has it all
            metrics.snapshot_failures_total.labels("not_restored").inc()
            about = {"collection": row.name}
            logger.error("a snapshot cannot be restored", extra=about, exc_info=error)
        finally:
            if view is None:
                self._scratch.discard([into])
        return view

    async def _restore(self, row: CollectionRow, into: Path) -> View | None:
        loaded = await asyncio.to_thread(
            self._snapshots.load_newest, row.epoch, self._slots, into,
            dim=row.dim, at_least_seq=row.purged,
        )  # fmt: skip
        if loaded is None or loaded.seq > row.seq:  # the log was put back to an older state
            return None
        segments = await asyncio.to_thread(self._open, loaded)
        logger.info("restored", extra={"collection": row.name, "snapshot": loaded.number})
        return View(
            row.name, row.epoch, row.dim, self._delta_rows, loaded.seq, segments, stored=loaded.seq
        )

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
