"""Groups work into batches: bounded, filled by cost, queries before bulk, nothing left hanging.

One task owns the queues, so there are no locks. It never waits for company: while a batch runs the
next one collects, and whatever has come in the meantime is the next batch.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, Self, TypeVar

from mmesh.errors import DeadlineExceeded, Draining, Overloaded

Item = TypeVar("Item")
Result = TypeVar("Result")


class Priority(enum.IntEnum):
    """Which queue work waits in; the lower goes first."""

    INTERACTIVE = 0
    BULK = 1


@dataclass(frozen=True, slots=True)
class Work(Generic[Item]):
    """One item to be done."""

    item: Item
    group: str
    """Only items of one group share a batch."""
    cost: int
    priority: Priority = Priority.INTERACTIVE
    expires_at: float = float("inf")
    """Moment on the monotonic clock after which nobody wants the outcome."""


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """An outcome, and how it came about."""

    result: Result
    queue_s: float
    run_s: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much goes into a batch and how much may wait."""

    max_items: int = 64
    max_cost: int = 2048
    """Cost of a batch as it runs: its dearest item times its items, since batches are padded."""
    max_waiting_cost: int = 65_536
    """Cost that may wait before work is refused."""
    bulk_share: float = 0.75
    """Share of the waiting cost that bulk work may use, so that queries always find room."""
    bulk_patience_s: float = 1.0
    """Bulk work that has waited longer goes before queries, once."""


@dataclass(slots=True, eq=False)
class _Entry(Generic[Item, Result]):
    work: Work[Item]
    outcome: asyncio.Future[Done[Result]]
    since: float = field(default_factory=time.monotonic)


class Batcher(Generic[Item, Result]):
    """Runs `run(items)` for batches of submitted work; an async context manager.

    `run` gets items of one group and returns their results in order. If it raises, the callers of
    that batch get the error and the next batch runs.
    """

    def __init__(
        self, run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], limits: BatchLimits
    ) -> None:
        self._run = run
        self._limits = limits
        self._queues: dict[Priority, deque[_Entry[Item, Result]]] = {p: deque() for p in Priority}
        self._waiting_cost = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._owner: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._owner = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish what waits, then stop."""
        self._closing = True
        self._arrived.set()
        if self._owner is not None:
            await self._owner

    @property
    def waiting_cost(self) -> int:
        """Cost of the work that waits for a batch."""
        return self._waiting_cost

    async def submit(self, work: Work[Item]) -> Done[Result]:
        """Return the outcome of `work`; if the caller goes away first it is never run.

        Raises:
            Overloaded: too much waits already.
            DeadlineExceeded: it expired before its turn came.
            Draining: the batcher is closing.
        """
        self._admit(work)
        entry = _Entry(work, asyncio.get_running_loop().create_future())
        self._queues[work.priority].append(entry)
        self._waiting_cost += work.cost
        self._arrived.set()
        return await entry.outcome

    def _admit(self, work: Work[Item]) -> None:
        if self._closing:
            raise Draining("the service is shutting down; call another one, or again in a moment")
        share = self._limits.bulk_share if work.priority is Priority.BULK else 1.0
        room = self._limits.max_waiting_cost * share
        if self._waiting_cost and self._waiting_cost + work.cost > room:
            raise Overloaded(f"work of cost {self._waiting_cost} waits already; at most {room:.0f}")

    async def _work(self) -> None:
        try:
            await self._work_until_closed()
        finally:  # however it ends, nobody is left waiting
            for entry in (entry for queue in self._queues.values() for entry in queue):
                if not entry.outcome.done():
                    entry.outcome.set_exception(Draining("the batcher has stopped"))

    async def _work_until_closed(self) -> None:
        while True:
            batch = self._next_batch()
            if batch:
                await self._run_batch(batch)
            elif self._closing:
                return
            else:
                self._arrived.clear()
                await self._arrived.wait()

    def _next_batch(self) -> list[_Entry[Item, Result]]:
        for queue in self._by_urgency():
            self._drop_unwanted(queue)
            if queue:
                return self._take(queue)
        return []

    def _by_urgency(self) -> list[deque[_Entry[Item, Result]]]:
        interactive, bulk = self._queues[Priority.INTERACTIVE], self._queues[Priority.BULK]
        patience = self._limits.bulk_patience_s
        impatient = bool(bulk) and time.monotonic() - bulk[0].since > patience
        return [bulk, interactive] if impatient else [interactive, bulk]

    def _drop_unwanted(self, queue: deque[_Entry[Item, Result]]) -> None:
        now = time.monotonic()
        unwanted = [e for e in queue if e.outcome.done() or e.work.expires_at <= now]
        self._remove(queue, unwanted)
        for entry in unwanted:
            if not entry.outcome.done():
                entry.outcome.set_exception(DeadlineExceeded("expired while waiting for a batch"))

    def _take(self, queue: deque[_Entry[Item, Result]]) -> list[_Entry[Item, Result]]:
        """Remove and return the first entry with the entries of its group that cost most alike."""
        first = queue[0]
        same = (e for e in queue if e.work.group == first.work.group and e is not first)
        others = list(islice(same, 4 * self._limits.max_items))
        others.sort(key=lambda entry: abs(entry.work.cost - first.work.cost))
        batch, dearest = [first], first.work.cost
        for entry in others:
            dearest = max(dearest, entry.work.cost)
            full = len(batch) == self._limits.max_items
            if full or dearest * (len(batch) + 1) > self._limits.max_cost:
                break
            batch.append(entry)
        self._remove(queue, batch)
        return batch

    def _remove(
        self, queue: deque[_Entry[Item, Result]], entries: list[_Entry[Item, Result]]
    ) -> None:
        if not entries:
            return
        gone = set(map(id, entries))
        kept = [entry for entry in queue if id(entry) not in gone]
        queue.clear()
        queue.extend(kept)
        self._waiting_cost -= sum(entry.work.cost for entry in entries)

    async def _run_batch(self, batch: list[_Entry[Item, Result]]) -> None:
        start = time.monotonic()
        try:
            results = await self._run([entry.work.item for entry in batch])
        except Exception as error:
            for entry in batch:
                if not entry.outcome.done():
                    entry.outcome.set_exception(error)
            return
        run_s = time.monotonic() - start
        for entry, result in zip(batch, results, strict=True):
            if not entry.outcome.done():
                entry.outcome.set_result(Done(result, start - entry.since, run_s, len(batch)))
