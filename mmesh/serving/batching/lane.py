"""One device at work: takes batch after batch from the backlog and settles their tickets."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from mmesh.errors import DeadlineExceeded, InputTooLong, InternalError, MmeshError
from mmesh.serving.batching.backlog import Backlog, Priority, Work
from mmesh.serving.batching.pace import Pace

MOST_FAILURES, FAILING_S = 8, 10.0
"""Passes that fail in a row, and for how long at least, until a device counts as lost."""

Item = TypeVar("Item")
Result = TypeVar("Result")
ItemIn = TypeVar("ItemIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)


class TooLarge(Exception):
    """A batch did not fit its device; its items in smaller batches may."""


class Device(Protocol[ItemIn, ResultOut]):
    """What runs batches, `passes` at a time."""

    passes: int
    """2 for a device that queues one batch while it runs another; else 1."""

    def collate(self, items: Sequence[ItemIn]) -> Any:
        """Begin to make items of one group ready, on a thread; return what `run` takes."""

    def run(self, collated: Any) -> Awaitable[Sequence[ResultOut]]:
        """Begin to run what `collate` returned; await the results, in order.

        Raises, when awaited:
            TooLarge: the batch does not fit.
            Exception: the callers of this batch get it; the next batch runs.
        """


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """An outcome, and how it came about."""

    result: Result
    queue_s: float
    run_s: float
    batch_size: int


@dataclass(slots=True)
class _Batch(Generic[Item]):
    works: list[Work[Item]]
    collated: Any
    taken_at: float
    started_at: float = field(init=False)
    results: asyncio.Future[Sequence[Any]] = field(init=False)

    @property
    def priority(self) -> Priority:
        return self.works[0].priority

    @property
    def cost(self) -> int:
        return sum(work.cost for work in self.works)

    def fail(self, error: Exception) -> None:
        for work in self.works:
            work.ticket.fail(error)


class Lane(Generic[Item, Result]):
    """Runs what waits on one device.

    At most one batch is ready ahead while another runs, and only if a whole batch waits: taken
    earlier, it would miss what comes in the meantime. A query overtakes bulk work that is ready.
    Where the device queues passes and no query is expected, the batch ahead is launched, too: else
    the device would be idle from the end of each batch until we have seen to it.
    """

    def __init__(self, device: Device[Item, Result], backlog: Backlog[Item], pace: Pace) -> None:
        self._device = device
        self._backlog = backlog
        self._pace = pace
        self._running: deque[_Batch[Item]] = deque()
        self._ahead: _Batch[Item] | None = None
        self._idle_since = 0.0
        self._failures, self._failing_since = 0, 0.0

    @property
    def is_failing(self) -> bool:
        """Whether many passes in a row have failed for some time, as on a device that is lost."""
        lasts_s = time.monotonic() - self._failing_since
        return self._failures >= MOST_FAILURES and lasts_s >= FAILING_S

    @property
    def cost(self) -> int:
        """Cost of what runs and what is ready to."""
        return sum(batch.cost for batch in (*self._running, self._ahead) if batch)

    async def work(self) -> None:
        """Run what waits until the backlog is closed and empty.

        If it ends otherwise whatever it had taken fails, and it may begin again.
        """
        try:
            while True:
                batch = self._next()
                if batch is not None:
                    await self._run(batch)
                elif self._running:
                    await self._settle_oldest()
                elif not await self._backlog.arrival():
                    return
        finally:
            for left in (*self._running, self._ahead):
                if left is not None:
                    left.fail(InternalError("the device's lane has failed"))
            self._running.clear()
            self._ahead = None

    async def _run(self, batch: _Batch[Item]) -> None:
        self._running.append(batch)
        self._begin(batch)
        while self._running and not self._can_launch():
            await self._progress()

    def _can_launch(self) -> bool:
        """Tell whether a whole batch is ready and the device takes it now."""
        if self._ahead is None and self._a_whole_batch_waits():
            self._ahead = self._take()
        return self._ahead is not None and len(self._running) < self._passes

    async def _progress(self) -> None:
        """Wait until the oldest batch is done and settle it, or until more waits for the next."""
        if self._ahead is None and self._passes > 1:
            growth, results = self._backlog.growth(), self._running[0].results
            await asyncio.wait((results, growth), return_when=asyncio.FIRST_COMPLETED)
            growth.cancel()
            if not results.done():
                return
        await self._settle_oldest()

    @property
    def _passes(self) -> int:
        """How many batches may be under way: a query that comes waits for all of them."""
        return 1 if self._pace.queries_stay else self._device.passes

    def _begin(self, batch: _Batch[Item]) -> None:
        batch.results = asyncio.ensure_future(self._device.run(batch.collated))
        batch.started_at = time.monotonic()

    def _next(self) -> _Batch[Item] | None:
        """Return the batch to run now."""
        if self._ahead is None or self._is_overtaken(self._ahead):
            batch = self._take()
            if batch is not None:
                return batch
        ahead, self._ahead = self._ahead, None
        return self._without_unwanted(ahead) if ahead else None

    def _is_overtaken(self, ahead: _Batch[Item]) -> bool:
        now = time.monotonic()
        turn = self._backlog.turn(now)
        impatient = now - ahead.taken_at > self._backlog.bulk_patience_s
        return turn is not None and turn < ahead.priority and not impatient

    def _a_whole_batch_waits(self) -> bool:
        turn = self._backlog.turn(time.monotonic())
        return turn is not None and self._backlog.cost(turn) >= self._pace.shape(turn).max_cost

    def _take(self) -> _Batch[Item] | None:
        now = time.monotonic()
        while (turn := self._backlog.turn(now)) is not None:
            works = self._backlog.take(turn, self._pace.shape(turn), now)
            if works:
                return self._batch(works)
        return None

    def _batch(self, works: list[Work[Item]]) -> _Batch[Item]:
        batch = _Batch(works, None, time.monotonic())
        try:
            batch.collated = self._device.collate([work.item for work in works])
        except BaseException:
            batch.fail(InternalError("the batch could not be made ready"))
            raise
        return batch

    def _without_unwanted(self, batch: _Batch[Item]) -> _Batch[Item] | None:
        wanted = _wanted(batch.works)
        if len(wanted) == len(batch.works):
            return batch
        return self._batch(wanted) if wanted else None

    async def _settle_oldest(self) -> None:
        """Wait for its results; a batch that does not fit is run once more, in halves."""
        batch = self._running[0]
        try:
            await self._settle_if_it_fits(batch)
        except TooLarge:
            middle = (len(batch.works) + 1) // 2
            for half in (batch.works[:middle], batch.works[middle:]):
                if wanted := _wanted(half):
                    await self._settle_half(self._batch(wanted))
        self._running.popleft()

    async def _settle_half(self, batch: _Batch[Item]) -> None:
        self._begin(batch)
        try:
            await self._settle_if_it_fits(batch)
        except TooLarge:
            if len(batch.works) == 1:
                batch.fail(InputTooLong("content", "does not fit the memory of the device"))
            else:
                waiting = self._backlog.cost(*Priority) + batch.cost
                batch.fail(self._pace.overloaded("the device's memory is full", waiting))

    async def _settle_if_it_fits(self, batch: _Batch[Item]) -> None:
        try:
            found: Sequence[Result] = await batch.results
        except TooLarge:
            self._pace.too_large([work.cost for work in batch.works])
            raise
        except Exception as error:
            batch.fail(error)
            if not isinstance(error, MmeshError):
                self._failing_since = self._failing_since if self._failures else time.monotonic()
                self._failures += 1
            return
        self._failures = 0
        start = max(batch.started_at, self._idle_since)  # before, others had the device
        self._idle_since = time.monotonic()
        run_s = self._idle_since - start
        self._pace.ran(batch.priority, batch.cost, run_s)
        for work, result in zip(batch.works, found, strict=True):
            work.ticket.settle(Done(result, start - work.since, run_s, len(batch.works)))


def _wanted(works: Sequence[Work[Item]]) -> list[Work[Item]]:
    """Return the work that somebody still waits for; the callers of the rest are late or gone."""
    now = time.monotonic()
    for work in works:
        if not work.ticket.is_wanted(now):
            work.ticket.fail(DeadlineExceeded("expired before its batch ran"))
    return [work for work in works if not work.ticket.outcome.done()]
