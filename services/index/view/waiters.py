"""Searches that wait until a view reflects a write: read-your-writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.index.view.view import View

Find = Callable[[], View | None]
"""Returns the view that somebody waits for, or None while it is not there."""


class Waiters:
    """Those who wait, by collection."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[asyncio.Future[View], Find]] = {}

    async def wait(self, name: str, find: Find) -> View:
        """Return what `find` returns, which is asked again at each `wake`."""
        outcome: asyncio.Future[View] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(name, {})
        waiting[outcome] = find
        try:
            return await outcome
        finally:
            waiting.pop(outcome, None)
            if not waiting and self._waiting.get(name) is waiting:
                del self._waiting[name]

    def wake(self, name: str) -> None:
        """Let those go on whose view is there now."""
        for outcome, find in self._waiting.get(name, {}).items():
            if not outcome.done() and (view := find()) is not None:
                outcome.set_result(view)

    def fail(self, name: str, error: Exception) -> None:
        """Let all who wait for a collection fail."""
        for outcome in self._waiting.get(name, {}):
            if not outcome.done():
                outcome.set_exception(error)
