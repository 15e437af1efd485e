"""Makes views, from snapshots or from nothing, and applies the log to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from services.index.log.log import Log
from services.index.log.rows import CollectionRow, Rows
from services.index.slots import SLOTS
from services.index.view.memory import MemoryBudget, load_bytes
from services.index.view.view import View

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
TAIL_ROWS = 5000
"""Rows that are applied at a time."""
READERS = 2
"""Threads that read the log: so a long read of one collection does not hold up a short one."""


class Source(Protocol):
    """Where views begin, and where what they leave goes."""

    async def restore(self, row: CollectionRow) -> View | None:
        """Return a view of a collection that reflects a part of its log, or None."""

    def discard(self, view: View) -> None:
        """Take back what a view has on disk: nobody uses it any more."""


class LogAlone:
    """A source without snapshots: every view begins with nothing."""

    async def restore(self, row: CollectionRow) -> None:
        """Return None."""

    def discard(self, view: View) -> None:
        """Do nothing."""


class Loader:
    """The threads that read the log and change views."""

    def __init__(
        self, log: Log, slots: range, delta_rows: int, budget: MemoryBudget, source: Source
    ) -> None:
        self._log, self._slots, self._delta_rows = log, slots, delta_rows
        self._budget, self._source = budget, source
        self._readers = ThreadPoolExecutor(READERS, "tail")
        self._applier = ThreadPoolExecutor(1, "apply")
        """The one thread that changes views."""
        self._beginning = asyncio.Lock()

    async def close(self) -> None:
        """Let what runs on the threads end."""
        await asyncio.to_thread(self._readers.shutdown)
        await asyncio.to_thread(self._applier.shutdown)

    async def begin(self, row: CollectionRow) -> View:
        """Return a new view, from a snapshot if there is one; one at a time, for the budget's sake.

        Raises:
            MemoryFull: the collection would not fit.
        """
        async with self._beginning:
            rows = sum(row.counts.values()) * len(self._slots) // SLOTS
            self._budget.check(row.name, load_bytes(rows, row.dim))
            logger.info("loading", extra={"collection": row.name, "candidates": rows})
            restored = await self._source.restore(row)
        if restored is not None:
            return restored
        return View(row.name, row.epoch, row.dim, self._delta_rows, purged=row.seq)

    async def read_some(self, view: View, row: CollectionRow) -> tuple[Rows, int]:
        """Return the next rows of the log for a view, and how far that reaches.

        Raises:
            CollectionNotFound: it is gone, or what the view needs was purged.
            HistoryLost: the log does not have what the view reflects.
            LogUnavailable: the log cannot be read now.
            MemoryFull: the rows would not fit.
        """
        new = max(0, min(TAIL_ROWS, row.seq - view.applied))
        self._budget.check(row.name, load_bytes(new, row.dim))
        read = partial(self._log.read_after, purged=view.purged, stamp=view.at.stamp)
        return await self.read(
            read, row.name, row.epoch, view.applied, self._slots, TAIL_ROWS, row.dim
        )

    def discard(self, view: View) -> None:
        """Take back what a view has on disk."""
        self._source.discard(view)

    async def read(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Run a read of the log on a thread for that."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work, *arguments)

    async def apply(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Run on the thread that changes views, so that nothing changes meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._applier, work, *arguments)
