"""The same work asked for twice at a time is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Result = TypeVar("Result")


@dataclass(slots=True)
class _Shared(Generic[Result]):
    task: asyncio.Future[Result]
    waiters: int = 0


class Coalescer(Generic[Result]):
    """Runs work by key; callers who come while it runs share its outcome.

    Work is cancelled when its last caller has gone away.
    """

    def __init__(self) -> None:
        self._running: dict[Hashable, _Shared[Result]] = {}

    async def run(
        self, key: Hashable, work: Callable[[], Awaitable[Result]]
    ) -> tuple[Result, bool]:
        """Return the outcome of `work` and whether another caller had started it."""
        shared = self._running.get(key)
        joined = shared is not None
        if shared is None:
            shared = _Shared(asyncio.ensure_future(work()))
            self._running[key] = shared
            shared.task.add_done_callback(lambda _: self._forget(key, shared))
        shared.waiters += 1
        try:
            return await asyncio.shield(shared.task), joined
        finally:
            shared.waiters -= 1
            if not shared.waiters and not shared.task.done():
                self._forget(key, shared)
                shared.task.cancel()

    def _forget(self, key: Hashable, shared: _Shared[Result]) -> None:
        if self._running.get(key) is shared:
            del self._running[key]
