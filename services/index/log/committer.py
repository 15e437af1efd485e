"""Group commit: writes that came while the log was busy share its next transaction."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from mmesh.errors import LogUnavailable, MmeshError, Overloaded, StorageFull
from services.index import metrics
from services.index.log.ledger import Write, Written
from services.index.log.log import Log

MAX_GROUP_ROWS = 4000
"""Rows in one transaction: enough to share its cost, few enough to be quick."""


@dataclass(slots=True)
class _Waiting:
    write: Write
    rows: int
    outcome: asyncio.Future[Written]
    since: float


class Committer:
    """Writes to the log; an async context manager that ends with nothing half done.

    There is no timer: a group is whatever queued while the one before it was written.
    """

    def __init__(self, log: Log, max_waiting: int) -> None:
        self._log, self._max_waiting = log, max_waiting
        self._queue: deque[_Waiting] = deque()
        self._writer = ThreadPoolExecutor(1, "log-writer")
        self._owner: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._owner is not None:
            await self._owner
        await asyncio.to_thread(self._writer.shutdown)

    async def write(self, write: Write, rows: int) -> Written:
        """Return once the write is on disk.

        Raises:
            Overloaded: too many writes wait already.
            LogUnavailable, StorageFull: nothing was written.
            MmeshError: the write was refused.
        """
        if len(self._queue) >= self._max_waiting:
            self._queue = deque(one for one in self._queue if not one.outcome.done())
        if len(self._queue) >= self._max_waiting:
            raise Overloaded(f"{len(self._queue)} writes wait already")
        outcome: asyncio.Future[Written] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(write, rows, outcome, time.perf_counter()))
        if self._owner is None or self._owner.done():
            self._owner = asyncio.create_task(self._drain())
        return await outcome

    async def _drain(self) -> None:
        while self._queue:
            group = self._take()
            if not group:
                continue
            try:
                await self._write(group)
            except (LogUnavailable, StorageFull) as error:  # of all alike
                _fail(group, error)
            except Exception as error:  # whatever it is, nobody may wait for ever
                await self._write_apart(group, error)

    async def _write_apart(self, group: list[_Waiting], error: Exception) -> None:
        """Write for each collection of a group that failed: rows of one alone may be damaged."""
        by_name: dict[str, list[_Waiting]] = {}
        for waiting in group:
            by_name.setdefault(waiting.write.collection, []).append(waiting)
        if len(by_name) == 1:
            _fail(group, error)
            return
        for part in by_name.values():
            try:
                await self._write(part)
            except Exception as own:  # as above
                _fail(part, own)

    async def _write(self, group: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        writes = [waiting.write for waiting in group]
        outcomes = await loop.run_in_executor(self._writer, self._log.write, writes)
        metrics.group_writes.observe(len(group))
        for waiting, outcome in zip(group, outcomes, strict=True):
            _settle(waiting, outcome)

    def _take(self) -> list[_Waiting]:
        """Remove and return the next group; writes whose caller went away are left out."""
        group: list[_Waiting] = []
        rows = 0
        while self._queue and (not group or rows + self._queue[0].rows <= MAX_GROUP_ROWS):
            waiting = self._queue.popleft()
            if not waiting.outcome.done():
                group.append(waiting)
                rows += waiting.rows
        return group


def _fail(group: list[_Waiting], error: Exception) -> None:
    for waiting in group:
        _settle(waiting, error)


def _settle(waiting: _Waiting, outcome: Written | Exception) -> None:
    metrics.write_seconds.observe(time.perf_counter() - waiting.since)
    if not isinstance(outcome, Exception):
        metrics.written_total.inc(outcome.count)
    if waiting.outcome.done():
        return
    if isinstance(outcome, Exception):
        waiting.outcome.set_exception(_own_copy(outcome))
    else:
        waiting.outcome.set_result(outcome)


def _own_copy(error: Exception) -> Exception:
    """Return an error that one caller alone raises: tracebacks of several must not mix."""
    if not isinstance(error, MmeshError):
        return error
    copy = error.__class__.__new__(error.__class__)
    copy.__dict__.update(error.__dict__)
    copy.args = error.args
    return copy
