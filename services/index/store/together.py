"""Overlapped I/O: pictures of one call are stored, and read, at the same time.

A file is on disk after a flush of its own, an object in S3 after a round trip or two: one after the
other, a batch of pictures waits longer for these than it takes to encode. A file system flushes
many files in the time of one (group commit of its journal).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AT_A_TIME = 16
"""Pictures of all calls of a process."""
FIRST = 4
"""Items that are read before anything is known of their sizes."""
Item = TypeVar("Item")
Answer = TypeVar("Answer")


def together(
    pool: ThreadPoolExecutor,
    work: Callable[[Item], Answer],
    items: Iterable[Item],
    waits: Callable[[Item], bool],
) -> list[Answer]:
    """Return what `work` returns for each item; what waits for a disk or a network is overlapped.

    Raises:
        Exception: the first one that `work` raised, in the order of the items. Nothing is begun
            after it; what runs by then runs on.
    """
    listed = list(items)
    begun: dict[int, Future[Answer]] = {
        n: pool.submit(work, item) for n, item in enumerate(listed) if waits(item)
    }
    try:
        return [begun[n].result() if n in begun else work(item) for n, item in enumerate(listed)]
    finally:
        for future in begun.values():
            future.cancel()


def filling(
    read: Callable[[Sequence[Item]], Sequence[Answer]],
    items: Sequence[Item],
    size_of: Callable[[Answer], int],
    most_bytes: int,
) -> list[Answer]:
    """Return what `read` returns for the first items: as many as fit, and one at least.

    Few are read at first, then about as many at a time as their sizes leave room for.
    """
    answers: list[Answer] = []
    filled, count = 0, FIRST
    while len(answers) < len(items):
        for answer in read(items[len(answers) : len(answers) + count]):
            filled += size_of(answer)
            if answers and filled > most_bytes:
                return answers
            answers.append(answer)
        room = (most_bytes - filled) * len(answers) // max(1, filled)
        count = max(1, min(AT_A_TIME, room))
    return answers
