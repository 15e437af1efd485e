"""Groups work into batches: bounded, filled by cost, queries before bulk, nothing left hanging.

One task a device takes from one backlog, so there are no locks. It never waits for company: while
a batch runs the next one collects, and whatever has come in the meantime is the next batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Self, TypeVar

from mmesh.errors import Draining, Overloaded
from mmesh.serving.backoff import Pauses
from mmesh.serving.batching.backlog import Backlog, BatchShape, Priority, Work
from mmesh.serving.batching.lane import Device, Lane
from mmesh.serving.batching.pace import Pace
from mmesh.serving.supervision import Supervised

PAUSES = Pauses(first_s=0.05, longest_s=2.0)
"""Between the failure of a device's lane, which only a defect can be, and its next start."""
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
    anything is spent on it. Its outcome, a `Done`, comes with its ticket. What is reserved is a
    guess; whoever has much to put waits for `room` in between.
    """

    def __init__(self, devices: Sequence[Device[Item, Result]], limits: BatchLimits) -> None:
        self._limits = limits
        self._backlog: Backlog[Item] = Backlog(bulk_patience_s=limits.bulk_patience_s)
        self._pace = Pace(limits.shape, len(devices))
        self._lanes = [Lane(device, self._backlog, self._pace) for device in devices]
        self._reserved = dict.fromkeys(Priority, 0)
        self._tasks = [
            Supervised("device lane", partial(self._work, lane), backoff=PAUSES)
            for lane in self._lanes
        ]

    async def __aenter__(self) -> Self:
        for task in self._tasks:
            task.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish what waits, then stop."""
        for task in self._tasks:
            task.may_return = True
        self._backlog.close()
        try:
            await asyncio.gather(*(task.finish() for task in self._tasks))
        finally:
            self._fail_what_waits()

    async def _work(self, lane: Lane[Item, Result]) -> None:
        try:
            await lane.work()
        finally:
            if self._backlog.is_closed:  # a lane that fails now shall have nothing to fail at again
                self._fail_what_waits()

    def _fail_what_waits(self) -> None:
        self._backlog.fail(Draining("the batcher has stopped"))

    @property
    def is_failing(self) -> bool:
        """Whether a device does nothing but fail; see `Lane`."""
        return any(lane.is_failing for lane in self._lanes)

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

    def has_room(self, priority: Priority) -> bool:
        """Tell whether what waits costs less than may wait, whatever is reserved.

        Queries have room beside any bulk work, which lets them go first.
        """
        if priority is Priority.INTERACTIVE:
            waiting = self._backlog.cost(priority)
        else:
            waiting = self._backlog.cost(*Priority)
        return not waiting or waiting < self._most_waiting(priority) or self._backlog.is_closed

    async def room(self, priority: Priority) -> None:
        """Wait until there is room."""
        while not self.has_room(priority):
            await self._backlog.decline()

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
        room = self._most_waiting(priority)
        if self.waiting_cost + cost > room:
            raise self._overloaded(f"work of cost {self.waiting_cost} waits; at most {room}")

    def _most_waiting(self, priority: Priority) -> int:
        share = self._limits.bulk_share if priority is Priority.BULK else 1.0
        return int(self._limits.max_waiting_cost * share)

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
