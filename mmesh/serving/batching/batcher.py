"""Groups work into batches: bounded, filled by cost, queries before bulk, nothing left hanging.

One task a device takes from one backlog, so there are no locks. It never waits for company: while
a batch runs the next one collects, and whatever has come in the meantime is the next batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

from mmesh.errors import Draining, Overloaded
from mmesh.serving.batching.backlog import Backlog, BatchShape, Priority, Work
from mmesh.serving.batching.lane import Device, Lane
from mmesh.serving.batching.pace import Pace

TIME_SHARE = 0.5
"""Share of a caller's time that work may be expected to take: a guess, and others may overtake."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much goes into a batch and how much may wait."""

    shape: BatchShape = field(default_factory=BatchShape)
    max_waiting_cost: int = 65_536
    """Cost that may wait before work is refused."""
    bulk_share: float = 0.75
    """Share of the waiting cost that bulk work may use, so that queries always find room."""
    bulk_patience_s: float = 1.0
    """Once in this time, bulk work that waits goes before queries."""


class Batcher(Generic[Item, Result]):
    """Runs work in batches on its devices; an async context manager.

    First `reserve` room, then `put` the work and `release` the room: so work is refused before
    anything is spent on it. Its outcome, a `Done`, comes with its ticket.
    """

    def __init__(self, devices: Sequence[Device[Item, Result]], limits: BatchLimits) -> None:
        self._limits = limits
        self._backlog: Backlog[Item] = Backlog(bulk_patience_s=limits.bulk_patience_s)
        self._pace = Pace(limits.shape, len(devices))
        self._lanes = [Lane(device, self._backlog, self._pace) for device in devices]
        self._reserved = dict.fromkeys(Priority, 0)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(lane.work()) for lane in self._lanes]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish what waits, then stop."""
        self._backlog.close()
        await asyncio.gather(*self._tasks)

    @property
    def waiting_cost(self) -> int:
        """Cost of the work that waits for a batch, or has room reserved."""
        return self._waiting(*Priority)

    def check_room(self, cost: int, priority: Priority, expires_at: float) -> None:
        """Raise what `reserve` would raise now.

        There is always room for a caller who finds nothing waiting.

        Raises:
            Overloaded: too much waits already, or so much that this would come too late; it says
                when to try again.
            Draining: the batcher is closing.
        """
        if self._backlog.is_closed:
            raise Draining("the service is shutting down; call another one, or again in a moment")
        if self.waiting_cost:
            self._check_room(cost, priority)
            self._check_time(cost, priority, expires_at)

    def reserve(self, cost: int, priority: Priority, expires_at: float) -> None:
        """Keep room for work of about this cost until `release`; raises as `check_room` does."""
        self.check_room(cost, priority, expires_at)
        self._reserved[priority] += cost

    def release(self, cost: int, priority: Priority) -> None:
        """Give back what `reserve` kept."""
        self._reserved[priority] -= cost

    def put(self, work: Work[Item]) -> None:
        """Let work wait for a batch; if its callers go away first it is never run."""
        if self._backlog.is_closed:
            work.ticket.fail(Draining("the service is shutting down"))
            return
        if work.priority is Priority.INTERACTIVE:
            self._pace.query_came()
        self._backlog.add(work)

    def _waiting(self, *priorities: Priority) -> int:
        return self._backlog.cost(*priorities) + sum(self._reserved[one] for one in priorities)

    def _check_room(self, cost: int, priority: Priority) -> None:
        share = self._limits.bulk_share if priority is Priority.BULK else 1.0
        room = int(self._limits.max_waiting_cost * share)
        if self.waiting_cost + cost > room:
            raise self._overloaded(f"work of cost {self.waiting_cost} waits; at most {room}")

    def _check_time(self, cost: int, priority: Priority, expires_at: float) -> None:
        """Refuse at once what could only be late: the time is better spent on the rest."""
        before = [Priority.INTERACTIVE] if priority is Priority.INTERACTIVE else list(Priority)
        seconds = self._pace.seconds(self._waiting(*before) + self._running + cost)
        if seconds > TIME_SHARE * (expires_at - time.monotonic()):
            raise self._overloaded(f"it would take some {seconds:.2g} s, too long for its deadline")

    @property
    def _running(self) -> int:
        return sum(lane.cost for lane in self._lanes)

    def _overloaded(self, why: str) -> Overloaded:
        return self._pace.overloaded(why, self.waiting_cost + self._running)
