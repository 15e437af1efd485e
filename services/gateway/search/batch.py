"""What the searches of one call share: turns to compute, and bytes of contents to answer with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mmesh.candidates import Candidate
from services.gateway.search.run import Run

FETCHES, JUDGED = 4, 8
"""Searches at a time that read contents to be shown, and such that hold contents to be judged: each
may take as much memory as a message has bytes."""
HIT_BYTES = 128
"""Of a hit in an answer beside its content and attributes, with its explanation."""


class Batch:
    """Bounds what the searches of one call hold of the event loop and of memory.

    Args:
        size: how many searches there are.
        most_bytes: of contents that fit into the answer.
    """

    def __init__(self, size: int, most_bytes: int) -> None:
        self._is_several = size > 1
        self._computing = asyncio.Semaphore(1)
        self.left_bytes = most_bytes
        self.fetching = asyncio.Semaphore(FETCHES)
        self.judging = asyncio.Semaphore(JUDGED)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Let one search compute at a time, and the event loop see to others in between."""
        async with self._computing:
            yield
            if self._is_several:
                await asyncio.sleep(0)

    def take_contents(self, run: Run, left: int) -> None:
        """Keep those contents of a run's hits that fit into the answer; `left` were not read."""
        held, run.contents = run.contents, {}
        for hit in (entry.hit for entry in run.ranked[: run.limit]):
            if hit.id not in held:
                continue
            size = Candidate(hit.id, held[hit.id], hit.attributes).size
            if size <= self.left_bytes:
                self.left_bytes -= size
                run.contents[hit.id] = held[hit.id]
            else:
                left += 1
        if left:
            run.degrade(
                "CONTENT_UNAVAILABLE",
                f"{left} of {min(run.limit, len(run.ranked))} hits are answered without content, "
                "which would not fit into one message; ask for fewer at a time, or read them by "
                "BatchGetCandidates",
            )
