"""Many searches in one call: each is a task, and answers go out as they are ready.

A message of a long call costs a third of a call of its own. See docs/adr/0018.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from mmesh import wire
from mmesh.api.index.v1 import index_pb2
from mmesh.errors import InvalidField, InvalidRequest, MmeshError
from mmesh.serving.deadline import Deadline
from mmesh.serving.interceptors import as_call

METHOD = "/mmesh.api.index.v1.IndexService/Search"
"""What metrics and logs call a search, however it came."""
DEFAULT_S, LONGEST_S = 30.0, 86_400.0
MOST_UNSENT = 1024
"""Searches that run, or have answers that the caller did not take: no more are read meanwhile."""

Search = Callable[[index_pb2.SearchRequest, index_pb2.SearchResponse, Deadline], Awaitable[None]]
"""Fills a response."""


class SearchStream:
    """The searches of one call."""

    def __init__(self, search: Search, stopping: asyncio.Event) -> None:
        """Take what answers a search, and what is set when no more are to be read."""
        self._search, self._stopping = search, stopping
        self._running: dict[int, asyncio.Task[None]] = {}
        self._answers: asyncio.Queue[index_pb2.SearchStreamResponse | None] = asyncio.Queue()
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
            while (answer := await self._answers.get()) is not None:
                yield answer
                self._room.release()
            await reading
        finally:
            left = [reading, *self._running.values()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[index_pb2.SearchStreamRequest]) -> None:
        taking = asyncio.create_task(self._take_all(requests))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({taking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if taking.done():
                taking.result()
            if self._running:
                await asyncio.wait(self._running.values())
        finally:
            taking.cancel()
            stopping.cancel()
            self._answers.put_nowait(None)

    async def _take_all(self, requests: AsyncIterator[index_pb2.SearchStreamRequest]) -> None:
        async for request in requests:
            step = request.WhichOneof("step")
            if step == "search":
                await self._room.acquire()
                self._start(request)
            elif step == "cancel":
                self._cancel(request.id)
            else:
                raise InvalidRequest("a message of a search stream must have `search` or `cancel`")

    def _start(self, request: index_pb2.SearchStreamRequest) -> None:
        if request.id in self._running:
            raise InvalidField("id", f"is {request.id}, like that of a search that still runs")
        task = asyncio.create_task(self._answer(request))
        self._running[request.id] = task

    def _cancel(self, number: int) -> None:
        task = self._running.get(number)
        if task is not None:
            task.cancel()

    async def _answer(self, request: index_pb2.SearchStreamRequest) -> None:
        answer = index_pb2.SearchStreamResponse(id=request.id)
        try:
            await self._fill(answer.response, request)
        except MmeshError as error:
            answer.problem.CopyFrom(wire.problem_to_pb(error))
        except asyncio.CancelledError:
            self._room.release()
            raise
        finally:
            del self._running[request.id]
        self._answers.put_nowait(answer)

    async def _fill(
        self, response: index_pb2.SearchResponse, request: index_pb2.SearchStreamRequest
    ) -> None:
        seconds = request.timeout_seconds or DEFAULT_S
        if not seconds > 0:  # true for NaN, too
            raise InvalidField("timeout_seconds", f"is {seconds}; it must be positive")
        deadline = Deadline.after(min(seconds, LONGEST_S))
        work = self._search(request.search, response, deadline)
        await as_call(METHOD, request.request_id, deadline, work)
