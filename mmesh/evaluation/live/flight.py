"""Batches of work in flight: several at a time, no more, and all stopped when one fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from itertools import islice
from typing import Any, TypeVar

from mmesh.evaluation.options import Effort

Item = TypeVar("Item")


async def in_batches(
    items: Iterator[Item], effort: Effort, work: Callable[[list[Item]], Coroutine[Any, Any, None]]
) -> None:
    """Do the work of all items, `batch` of them together and `in_flight` batches at a time.

    Raises what the first batch that fails raises; the others are cancelled.
    """
    free = asyncio.Semaphore(effort.in_flight)
    try:
        async with asyncio.TaskGroup() as group:
            while batch := list(islice(items, effort.batch)):
                await free.acquire()
                group.create_task(work(batch)).add_done_callback(lambda _: free.release())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
