"""Hedged requests: a second replica is asked while the first is slow, after what 95 of 100 take.

The slowest calls become shorter, for a few calls more: at most one in twenty (Dean and Barroso,
"The Tail at Scale", CACM 56(2), 2013).
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Generic, Self, TypeVar

from cachetools import LRUCache

from mmesh.errors import MmeshError, Unavailable

SHARE, MOST_SAVED = 0.05, 10.0
"""Second calls for each call that is answered, and how many may be saved for a bad moment."""
SLOW, LEAST_S = 0.95, 0.005
"""Calls that take longer than this share of them are slow, but none that is faster than this."""
WINDOW, RENEWED_EVERY = 512, 32
MOST_COLLECTIONS = 256
"""Collections whose times are known; each costs 16 KB at most."""

Answer = TypeVar("Answer")


class HedgeDelay:
    """The delay before a second call, by how long calls took lately, and how many are allowed."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._until_renewal = RENEWED_EVERY
        self._slow_s = math.inf
        self._saved = 0.0

    def note(self, seconds: float) -> None:
        """Take note of a call that was answered."""
        self._seconds.append(seconds)
        self._saved = min(MOST_SAVED, self._saved + SHARE)
        self._until_renewal -= 1
        if not self._until_renewal:
            self._until_renewal = RENEWED_EVERY
            rank = int(SLOW * len(self._seconds))
            self._slow_s = max(LEAST_S, sorted(self._seconds)[rank])

    @property
    def patience_s(self) -> float:
        """Seconds after which a second call may be made; infinite where none may."""
        return self._slow_s if self._saved >= 1 else math.inf

    def spend(self) -> bool:
        """Take note of a second call; False where none may be made any more."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


class HedgeDelays:
    """An LRU cache of the delays by collection: what is slow for one is fast for another."""

    def __init__(self) -> None:
        self._delays: LRUCache[str, HedgeDelay] = LRUCache(MOST_COLLECTIONS)

    def of(self, collection: str) -> HedgeDelay:
        """Return the delay for searches of a collection."""
        delay = self._delays.get(collection)
        if delay is None:
            delay = self._delays[collection] = HedgeDelay()
        return delay


class Race(Generic[Answer]):
    """Calls of which the first answer counts; leaving the context cancels those that still run."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Answer]] = set()
        self._failure: MmeshError | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def enter(self, call: Coroutine[None, None, Answer]) -> None:
        """Start one more call."""
        self._running.add(asyncio.create_task(call))

    async def first(self, patience_s: float | None) -> Answer | None:
        """Return an answer, or None when none came in time.

        Raises:
            MmeshError: a call failed before one answered; others may still run.
        """
        done, self._running = await asyncio.wait(
            self._running, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
        )
        for task in sorted(done, key=_has_failed):
            try:
                return task.result()
            except MmeshError as error:
                self._failure = error
            except asyncio.CancelledError:  # by somebody else: this race still runs
                self._failure = Unavailable("the call was cut off")
        if done and self._failure is not None:
            raise self._failure
        return None

    async def last(self) -> Answer:
        """Return the first answer of the calls that still run.

        Raises:
            MmeshError: none answered; this is the last error.
        """
        while self._running:
            with suppress(MmeshError):
                if (answer := await self.first(None)) is not None:
                    return answer
        assert self._failure is not None, "nobody entered"
        raise self._failure


def _has_failed(task: asyncio.Task[Any]) -> bool:
    return task.cancelled() or task.exception() is not None
