"""Background iteration: a source that may block, read on a thread of its own for an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
MOST_AT_ONCE, LONGEST_S = 256, 0.005
"""Items, and seconds of taking them, after which the event loop gets what there is."""


@contextmanager
def off_the_loop(
    items: Iterable[Item] | AsyncIterable[Item],
) -> Iterator[Iterable[Item] | AsyncIterable[Item]]:
    """Give what an event loop may read without being blocked: a source's items, or as they are."""
    if isinstance(items, AsyncIterable) or type(items) in (list, tuple):
        yield items
        return
    source = SourceThread(items)
    try:
        yield source
    finally:
        source.close()


@dataclass(slots=True)
class _Chunk(Generic[Item]):
    """What was taken at once."""

    items: list[Item] = field(default_factory=list)
    failure: BaseException | None = None
    is_last: bool = False


Order = tuple[asyncio.AbstractEventLoop, "asyncio.Future[_Chunk[Item]]"]


class SourceThread(Generic[Item]):
    """An asynchronous iterator over what is iterated on a thread of its own, once it is asked for.

    Nothing is taken in advance but the few items of a chunk, and nobody waits for the thread: it
    ends by itself once the source lets it. What the source raises is raised after what it gave.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._orders: SimpleQueue[Order[Item] | None] = SimpleQueue()
        self._taken: deque[Item] = deque()
        self._chunk: _Chunk[Item] = _Chunk()  # the newest
        threading.Thread(
            target=copy_context().run,
            args=(_serve, items, self._orders),
            name="mmesh source",
            daemon=True,
        ).start()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        while not self._taken:
            if self._chunk.is_last:
                failure, self._chunk.failure = self._chunk.failure, None
                raise failure or StopAsyncIteration
            loop = asyncio.get_running_loop()
            coming: asyncio.Future[_Chunk[Item]] = loop.create_future()
            self._orders.put((loop, coming))
            self._chunk = await coming
            self._taken.extend(self._chunk.items)
        return self._taken.popleft()

    def close(self) -> None:
        """Take no more from the source."""
        self._orders.put(None)


def _serve(items: Iterable[Item], orders: SimpleQueue[Order[Item] | None]) -> None:
    iterator: Iterator[Item] | None = None
    while (order := orders.get()) is not None:
        loop, coming = order
        chunk: _Chunk[Item] = _Chunk()
        try:
            iterator = iter(items) if iterator is None else iterator
            _fill(chunk, iterator)
        except BaseException as failure:  # whatever it is, who iterates gets it
            chunk.failure, chunk.is_last = failure, True
        try:
            loop.call_soon_threadsafe(_deliver, coming, chunk)
        except RuntimeError:  # the loop was closed meanwhile
            return
        if chunk.is_last:
            return


def _fill(chunk: _Chunk[Item], iterator: Iterator[Item]) -> None:
    until = time.monotonic() + LONGEST_S
    for item in iterator:
        chunk.items.append(item)
        if len(chunk.items) == MOST_AT_ONCE or time.monotonic() >= until:
            return
    chunk.is_last = True


def _deliver(coming: asyncio.Future[_Chunk[Item]], chunk: _Chunk[Item]) -> None:
    if not coming.done():  # else nobody waits any more
        coming.set_result(chunk)
