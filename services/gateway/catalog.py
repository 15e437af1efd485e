"""LRU cache of what names of collections stand for, as the log said a moment ago."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from cachetools import LRUCache

from mmesh.collections import Collection
from mmesh.errors import DeadlineExceeded, Unavailable
from mmesh.serving.deadline import Deadline
from services.gateway.interfaces import Index

MOST_KNOWN = 4096
FRESH_S = 1.0
"""Seconds for which an answer is used; another gateway may move an alias meanwhile."""
ASK_S, PATIENCE_S = 2.0, 0.2
"""Longest time for a call to the log, and for waiting for it where an older answer is at hand."""


@dataclass(slots=True)
class _Known:
    collection: Collection
    until: float


class Catalog:
    """Collections by name and by alias. While the log is away what was known last is used.

    An entry may be out of date for `FRESH_S`. Nothing goes wrong by it: the index refuses vectors
    of a model that is not the collection's, whereupon the caller says `forget` and begins anew; and
    a search that names a write to another collection asks the log.
    """

    def __init__(self, index: Index, fresh_s: float = FRESH_S) -> None:
        self._index, self._fresh_s = index, fresh_s
        self._known: LRUCache[str, _Known] = LRUCache(MOST_KNOWN)
        self._asking: dict[str, asyncio.Task[Collection]] = {}
        self._tasks: set[asyncio.Task[Collection]] = set()

    async def close(self) -> None:
        """End what is being asked."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def forget(self) -> None:
        """Ask the log again, for every name; what is being asked now may be out of date too."""
        self._known.clear()
        self._asking.clear()

    async def get(self, name: str, deadline: Deadline) -> Collection:
        """Return the collection of a name or an alias; those who ask at a time share one call.

        Raises:
            CollectionNotFound: there is none.
            Unavailable: the log is away and the name is not known.
        """
        known = self._known.get(name)
        if known is not None and time.monotonic() < known.until:
            return known.collection
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.create_task(self._ask(name))
            self._tasks.add(task)
            task.add_done_callback(lambda done: self._note(name, done))
        left_s = deadline.remaining()
        try:
            patience_s = left_s if known is None else min(PATIENCE_S, left_s)
            async with asyncio.timeout(patience_s):
                return await asyncio.shield(task)
        except TimeoutError:
            if known is None:
                raise DeadlineExceeded("the log did not answer in time") from None
        except (Unavailable, DeadlineExceeded):
            if known is None:
                raise
        known.until = time.monotonic() + self._fresh_s
        return known.collection

    async def _ask(self, name: str) -> Collection:
        try:
            async with asyncio.timeout(ASK_S):
                return await self._index.get_collection(name, Deadline.after(ASK_S))
        except TimeoutError:
            raise DeadlineExceeded("the log did not answer in time") from None

    def _note(self, name: str, task: asyncio.Task[Collection]) -> None:
        self._tasks.discard(task)
        failed = task.cancelled() or task.exception() is not None
        if self._asking.get(name) is not task:
            return  # forgotten since
        del self._asking[name]
        if not failed:
            self._known[name] = _Known(task.result(), time.monotonic() + self._fresh_s)
