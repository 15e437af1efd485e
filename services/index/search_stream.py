"""Many searches in one call: each is a task, and answers go out as they are ready.

A message costs a third of what a call costs, and carries all that is ready. See docs/adr/0018.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from mmesh import wire
from mmesh.api.index.v1 import index_pb2
from mmesh.errors import InternalError, InvalidField, MessageTooLarge, MmeshError
from mmesh.serving.deadline import Deadline
from mmesh.serving.handlers import as_call

logger = logging.getLogger(__name__)

METHOD = "/mmesh.api.index.v1.IndexService/Search"
"""What metrics and logs call a search, however it came."""
DEFAULT_S, LONGEST_S = 30.0, 86_400.0
MOST_UNSENT = 1024
"""Searches that run, or have answers that the caller did not take: no more are read meanwhile."""

ENOUGH_BYTES, MOST_BYTES = 1 << 16, 32 << 20
"""A message takes no more answers once it has so many bytes; and the most of one answer."""

Search = Callable[[index_pb2.SearchRequest, index_pb2.SearchResponse, Deadline], Awaitable[None]]
"""Fills a response."""


class SearchStream:
    """The searches of one call.

    Args:
        search: answers one.
        stopping: is set when no more are to be read.
        most_bytes: of an answer; a larger one would end the call, and so the other searches.
    """

    def __init__(
        self, search: Search, stopping: asyncio.Event, most_bytes: int = MOST_BYTES
    ) -> None:
        self._search, self._stopping, self._most_bytes = search, stopping, most_bytes
        self._running: dict[int, asyncio.Task[index_pb2.StreamedAnswer]] = {}
        self._answers: asyncio.Queue[index_pb2.StreamedAnswer | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(MOST_UNSENT)

    async def answers(
        self, requests: AsyncIterator[index_pb2.SearchStreamRequest]
    ) -> AsyncIterator[index_pb2.SearchStreamResponse]:
        """Yield answers until there are no more requests, or none are to be read, and all are done.

        Raises:
            InvalidRequest: a request makes no sense in this call.
        """
        reading = asyncio.create_task(self._read(requests))
        try:
            while ready := await self._ready():
                yield index_pb2.SearchStreamResponse(answers=ready)
                for _ in ready:
                    self._room.release()
            await reading
        finally:
            left = [reading, *self._running.values()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _ready(self) -> list[index_pb2.StreamedAnswer]:
        """Wait for an answer, and return it with all that are ready then; none when all is done."""
        ready: list[index_pb2.StreamedAnswer] = []
        size = 0
        while size < ENOUGH_BYTES and (not ready or not self._answers.empty()):
            answer = await self._answers.get()
            if answer is None:
                self._answers.put_nowait(None)  # for the next time
                break
            own = answer.ByteSize()
            if own > self._most_bytes:
                answer = _without_hits(answer, own, self._most_bytes)
                own = answer.ByteSize()
            ready.append(answer)
            size += own
        return ready

    async def _read(self, requests: AsyncIterator[index_pb2.SearchStreamRequest]) -> None:
        taking = asyncio.create_task(self._take_all(requests))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({taking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if taking.done():
                taking.result()
            taking.cancel()
            if self._running:
                await asyncio.wait(self._running.values())
        finally:
            self._answers.put_nowait(None)
            for task in (taking, stopping):
                task.cancel()
            await asyncio.gather(taking, stopping, return_exceptions=True)

    async def _take_all(self, requests: AsyncIterator[index_pb2.SearchStreamRequest]) -> None:
        async for request in requests:
            for search in request.searches:
                await self._room.acquire()
                self._start(search)
            for number in request.cancelled_ids:
                if (task := self._running.pop(number, None)) is not None:
                    task.cancel()

    def _start(self, search: index_pb2.StreamedSearch) -> None:
        if search.id in self._running:
            raise InvalidField("id", f"is {search.id}, like that of a search that still runs")
        task = self._running[search.id] = asyncio.create_task(self._answer(search))
        task.add_done_callback(partial(self._end, search.id))

    def _end(self, number: int, task: asyncio.Task[index_pb2.StreamedAnswer]) -> None:
        if self._running.get(number) is task:  # another may have its number by now
            del self._running[number]
        if task.cancelled():
            self._room.release()
        elif (error := task.exception()) is not None:  # or the search would be waited for
            logger.error("a search has no answer", exc_info=error)
            problem = wire.problem_to_pb(InternalError("a defect of mmesh; its logs tell more"))
            self._answers.put_nowait(index_pb2.StreamedAnswer(id=number, problem=problem))
        else:
            self._answers.put_nowait(task.result())

    async def _answer(self, search: index_pb2.StreamedSearch) -> index_pb2.StreamedAnswer:
        answer = index_pb2.StreamedAnswer(id=search.id)
        seconds = search.timeout_seconds or DEFAULT_S
        try:
            if not seconds > 0:  # true for NaN, too
                raise InvalidField("timeout_seconds", f"is {seconds}; it must be positive")
            deadline = Deadline.after(min(seconds, LONGEST_S))
            work = self._search(search.search, answer.response, deadline)
            await as_call(METHOD, search.request_id, deadline, work)
        except MmeshError as error:
            answer.problem.CopyFrom(wire.problem_to_pb(error))
        return answer


def _without_hits(
    answer: index_pb2.StreamedAnswer, size: int, most: int
) -> index_pb2.StreamedAnswer:
    error = MessageTooLarge(f"the hits are {size} bytes; at most {most} go out: ask for fewer")
    return index_pb2.StreamedAnswer(id=answer.id, problem=wire.problem_to_pb(error))
