"""How fresh a view searches get: eventual, session (read your writes) or strong consistency."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from mmesh.errors import HistoryLost, StaleReplica
from mmesh.serving.deadline import Deadline
from mmesh.values.tokens import Token
from services.index.log.log import Log
from services.index.log.rows import CollectionRow
from services.index.point import Point
from services.index.view.follower import Follower
from services.index.view.view import View

SOON_S = 0.25
"""Longest wait for a write before the log is asked whether it has it: nearly all come sooner."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """Waits until views are as fresh as searches ask."""

    follower: Follower
    log: Log
    read: Callable[..., Awaitable[Any]]
    """Runs a call of the log on a thread."""

    async def any(self, row: CollectionRow, deadline: Deadline) -> View:
        """Return the view of a collection as soon as there is one.

        Raises:
            StaleReplica: there is none in time.
            MemoryFull: this shard refused to load the collection.
        """
        return await self.follower.wait_for(row, 0, deadline)

    async def head(self, row: CollectionRow, since: float, deadline: Deadline) -> View:
        """Return the view once it reflects what the log had at `since`, or later.

        `row` is what the log had then, `since` a moment before it was read (monotonic clock).

        Raises:
            StaleReplica: it does not in time.
            MemoryFull: this shard refused to load the collection.
        """
        return await self.follower.wait_for(row, row.seq, deadline, since=since)

    async def after(self, row: CollectionRow, token: Token, deadline: Deadline) -> View:
        """Return the view once it reflects the write that a token names.

        Raises:
            HistoryLost: the log has lost the write.
            LogUnavailable: it cannot be told whether it has.
            StaleReplica: the view does not in time.
            MemoryFull: this shard refused to load the collection.
        """
        if token.epoch != row.epoch:
            # The alias may have moved from that one to its mirror, which has the same writes.
            return await self.follower.wait_for(row, row.seq, deadline)
        point = Point(token.seq, token.stamp)
        try:
            soon = Deadline.after(min(SOON_S, deadline.remaining() / 2))
            view = await self.follower.wait_for(row, point.seq, soon)
        except StaleReplica:  # it is late, or it never comes
            return await self._after_check(row, point, deadline)
        if not point.seq or view.history.has(point):
            return view
        return await self._after_check(row, point, deadline)

    async def _after_check(self, row: CollectionRow, point: Point, deadline: Deadline) -> View:
        """Return the view once it reflects what the log, which has the point, has now."""
        since = time.monotonic()
        if await self.read(self.log.holds, row, point) is False:
            raise HistoryLost(row.name)
        view = await self.follower.wait_for(row, point.seq, deadline, since=since)
        view.history.checked(point)
        return view
