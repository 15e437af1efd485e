"""What waits for a batch, and which of it should share the next one."""

from __future__ import annotations

import asyncio
import enum
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, count
from typing import Any, Generic, NamedTuple, TypeVar

from mmesh.errors import DeadlineExceeded
from mmesh.serving.batching.coalesce import Ticket

Item = TypeVar("Item")


class Priority(enum.IntEnum):
    """Whose turn it is first: the lower."""

    INTERACTIVE = 0
    BULK = 1


WINDOW = {Priority.INTERACTIVE: 4, Priority.BULK: 16}
"""How many batches early work may run, as company for what is due first.

A wide window pads less. But among queries each one that runs early makes others late.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Work(Generic[Item]):
    """One item to be done."""

    item: Item
    group: str
    """Only items of one group share a batch."""
    cost: int
    """At least 1."""
    ticket: Ticket[Any]
    """Who waits for it; work that nobody wants any more is never done."""
    priority: Priority = Priority.INTERACTIVE
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class BatchShape:
    """How large a batch may be, and how much alike what is in it."""

    max_items: int = 64
    max_cost: int = 1024
    """Cost of a batch as it runs; see `cost_of`."""
    pass_cost: int = 24
    """What a pass costs whatever is in it. Padding an item by more is dearer than one more pass."""
    packed: bool = False
    """Items lie end to end and none is padded, so any may share a batch with any other."""

    def cost_of(self, costs: Sequence[int]) -> int:
        """Return what a batch of such items costs: padded, its dearest item times its items."""
        return sum(costs) if self.packed else max(costs) * len(costs)


class _Entry(NamedTuple):
    due: float
    number: int
    """Of arrival: ties go by it, and no two entries are equal."""
    work: Work[Any]


class Backlog(Generic[Item]):
    """Waiting work by priority and group, each queue in the order in which its work is due.

    Work is due at its deadline, or `patience_s` after it came if that is sooner, so that no stream
    of urgent work holds up the rest for ever. Bulk work lets queries go first, but once in
    `bulk_patience_s` it goes before them.
    """

    def __init__(self, patience_s: float = 10.0, bulk_patience_s: float = 1.0) -> None:
        self._patience_s = patience_s
        self.bulk_patience_s = bulk_patience_s
        self._queues: dict[Priority, dict[str, list[_Entry]]] = {p: {} for p in Priority}
        self._entries: dict[Ticket[Any], _Entry] = {}
        self._costs = dict.fromkeys(Priority, 0)
        self._numbers = count()
        self._bulk_served = 0.0
        """When bulk work last had its turn, or began to wait for one."""
        self._arrived = asyncio.Event()
        self._watchers: list[asyncio.Future[None]] = []
        self._decline = asyncio.Event()
        self.is_closed = False

    def __len__(self) -> int:
        """Return how many items wait."""
        return len(self._entries)

    def cost(self, *priorities: Priority) -> int:
        """Return the cost of what waits with these priorities."""
        return sum(self._costs[priority] for priority in priorities)

    def add(self, work: Work[Item]) -> None:
        """Let `work` wait for its turn, until then or until its callers have gone."""
        groups = self._queues[work.priority]
        if work.priority is Priority.BULK and not groups:
            self._bulk_served = work.since
        due = min(work.ticket.expires_at, work.since + self._patience_s)
        entry = _Entry(due, next(self._numbers), work)
        insort(groups.setdefault(work.group, []), entry)  # first, as a group of no use fails here
        self._entries[work.ticket] = entry
        self._costs[work.priority] += work.cost
        self._arrived.set()
        self._tell_watchers()
        work.ticket.outcome.add_done_callback(lambda _: self._discard(work.ticket))

    async def arrival(self) -> bool:
        """Wait until something waits, which is True, or nothing ever will."""
        while not self._entries and not self.is_closed:
            self._arrived.clear()
            await self._arrived.wait()
        return bool(self._entries)

    def growth(self) -> asyncio.Future[None]:
        """Return what is done when more waits than now, or nothing more will come."""
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.append(watcher)
        return watcher

    async def decline(self) -> None:
        """Wait until less waits than now, or nothing more will come."""
        self._decline.clear()
        await self._decline.wait()

    def _tell_watchers(self) -> None:
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)
        self._watchers.clear()

    def close(self) -> None:
        """Let nothing more come; who waits for an arrival is told."""
        self.is_closed = True
        self._arrived.set()
        self._decline.set()
        self._tell_watchers()

    def fail(self, error: Exception) -> None:
        """Forget everything that waits, with this error for its callers."""
        for ticket in list(self._entries):
            self._discard(ticket)
            ticket.fail(error)

    def _discard(self, ticket: Ticket[Any]) -> None:
        """Forget the work of `ticket`, whose callers have gone, if it still waits."""
        entry = self._entries.get(ticket)
        if entry is not None:
            queue = self._queues[entry.work.priority][entry.work.group]
            del queue[bisect_left(queue, entry)]
            self._forget([entry])

    def turn(self, now: float) -> Priority | None:
        """Return the priority whose turn it is; None when nothing waits."""
        bulk, queries = self._queues[Priority.BULK], self._queues[Priority.INTERACTIVE]
        if bulk and (not queries or now - self._bulk_served > self.bulk_patience_s):
            return Priority.BULK
        return Priority.INTERACTIVE if queries else None

    def take(self, priority: Priority, shape: BatchShape, now: float) -> list[Work[Item]]:
        """Remove and return the work of a batch: what is due first, and the best company for it.

        Work that nobody wants any more is dropped; empty if that was all. Something of `priority`
        must wait.
        """
        queue = min(self._queues[priority].values())
        size = _size_of_window(queue, WINDOW[priority], shape)
        window, queue[:size] = queue[:size], []
        wanted: list[_Entry] = []
        late: list[_Entry] = []
        for entry in window:
            (wanted if entry.work.ticket.is_wanted(now) else late).append(entry)
        chosen = _with_company(wanted, shape)
        taken = {entry.number for entry in chosen}
        queue[:0] = [entry for entry in wanted if entry.number not in taken]
        self._forget([*chosen, *late])
        if chosen and priority is Priority.BULK:
            self._bulk_served = now
        for entry in late:
            entry.work.ticket.fail(DeadlineExceeded("expired while waiting for a batch"))
        return [entry.work for entry in chosen]

    def _forget(self, entries: Sequence[_Entry]) -> None:
        """Take entries that have left their queue out of the accounts."""
        self._decline.set()
        for _, _, work in entries:
            del self._entries[work.ticket]
            self._costs[work.priority] -= work.cost
        for priority, group in {(work.priority, work.group) for _, _, work in entries}:
            if not self._queues[priority][group]:
                del self._queues[priority][group]


def _size_of_window(queue: Sequence[_Entry], batches: int, shape: BatchShape) -> int:
    """Return how many entries may fill so many batches, about."""
    most = queue[: batches * shape.max_items]
    return 1 + bisect_left(list(accumulate(e.work.cost for e in most)), batches * shape.max_cost)


def _with_company(window: list[_Entry], shape: BatchShape) -> list[_Entry]:
    """Return the first entry and those that should run with it, the cheapest first."""
    if not window:
        return []
    ordered = sorted(window, key=lambda entry: entry.work.cost)
    costs = [entry.work.cost for entry in ordered]
    first = bisect_left(costs, window[0].work.cost)  # the sort is stable
    return ordered[alike(costs, first, shape) if shape.packed else best_run(costs, first, shape)]


def alike(costs: Sequence[int], first: int, shape: BatchShape) -> slice:
    """Return the run of ascending `costs` around place `first` that is full, of the nearest ones.

    Packed items cost nobody anything; but attention is laid out for the longest of a batch.
    """
    start, stop, total = first, first + 1, costs[first]
    while stop - start < shape.max_items:
        below = costs[first] - costs[start - 1] if start else None
        above = costs[stop] - costs[first] if stop < len(costs) else None
        if above is None and below is None:
            break
        down = above is None or (below is not None and below <= above)
        total += costs[start - 1] if down else costs[stop]
        if total > shape.max_cost:
            break
        start, stop = (start - 1, stop) if down else (start, stop + 1)
    return slice(start, stop)


def best_run(costs: Sequence[int], first: int, shape: BatchShape) -> slice:
    """Return the run of ascending `costs` that holds place `first` and does most work in its time.

    The time of a run is its padded cost and that of a pass. Runs within the limits count, in which
    no item's padding is dearer than a pass of its own; an item over the limit runs alone.
    """
    totals = [0, *accumulate(costs)]
    best, most = slice(first, first + 1), 0.0
    for stop in range(first + 1, len(costs) + 1):
        dearest = costs[stop - 1]
        room = min(shape.max_items, shape.max_cost // dearest)
        if stop - first > room or dearest - costs[first] > shape.pass_cost:
            break
        work_in_time = partial(_work_in_time, totals, stop, dearest, shape.pass_cost)
        lowest = max(stop - room, bisect_left(costs, dearest - shape.pass_cost))
        start = _best_start(work_in_time, lowest, first)
        if work_in_time(start) >= most:
            best, most = slice(start, stop), work_in_time(start)
    return best


def _work_in_time(
    totals: Sequence[int], stop: int, dearest: int, pass_cost: int, start: int
) -> float:
    return (totals[stop] - totals[start]) / (dearest * (stop - start) + pass_cost)


def _best_start(work_in_time: Callable[[int], float], lowest: int, highest: int) -> int:
    """Return where a run should start: ever cheaper items help until one does not."""

    def helps(place: int) -> bool:
        return work_in_time(place) >= work_in_time(place + 1)

    return lowest + bisect_left(range(lowest, highest), True, key=helps)
