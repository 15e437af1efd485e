"""The searches that are sent to one index process, over one long call: see docs/adr/0018."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import grpc

from mmesh import wire
from mmesh.api.index.v1 import index_pb2, index_pb2_grpc
from mmesh.errors import DeadlineExceeded, Unavailable
from mmesh.serving import logs
from mmesh.serving.deadline import Deadline


class SearchStream:
    """Searches one process; the call is opened when it is needed, and anew after it ended."""

    def __init__(self, stub: index_pb2_grpc.IndexServiceStub) -> None:
        self._stub = stub
        self._link: _Link | None = None

    async def search(
        self, request: index_pb2.SearchRequest, deadline: Deadline
    ) -> index_pb2.SearchResponse:
        """Search.

        Raises:
            grpc.aio.AioRpcError: the call broke.
            MmeshError: the process ended it, or answered with a problem.
        """
        if self._link is None or self._link.is_over:
            self._link = _Link(self._stub)
        return await self._link.search(request, deadline)

    async def close(self) -> None:
        """End the call; searches that still run are cut off."""
        if self._link is not None:
            await self._link.close()


class _Link:
    """One call, and those who wait for its answers."""

    def __init__(self, stub: index_pb2_grpc.IndexServiceStub) -> None:
        self.is_over = False
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[index_pb2.SearchStreamResponse]] = {}
        self._unsent: asyncio.Queue[index_pb2.SearchStreamRequest | None] = asyncio.Queue()
        self._running = asyncio.create_task(self._run(stub))

    async def search(
        self, request: index_pb2.SearchRequest, deadline: Deadline
    ) -> index_pb2.SearchResponse:
        number = next(self._numbers)
        waiting: asyncio.Future[index_pb2.SearchStreamResponse]
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        left_s = deadline.remaining()
        self._unsent.put_nowait(
            index_pb2.SearchStreamRequest(
                id=number, search=request, timeout_seconds=left_s, request_id=logs.request_id.get()
            )
        )
        try:
            async with asyncio.timeout(left_s):
                answer = await waiting
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before it answered") from None
        finally:
            del self._waiting[number]
            if waiting.cancelled():
                self._unsent.put_nowait(index_pb2.SearchStreamRequest(id=number, cancel=True))
        if answer.HasField("problem"):
            raise wire.problem_from_pb(answer.problem)
        return answer.response

    async def _run(self, stub: index_pb2_grpc.IndexServiceStub) -> None:
        error: Exception = Unavailable("it shuts down")
        try:
            requests: Any = self._requests()  # stubs know blocking calls only
            call: Any = stub.SearchStream(requests)
            async for answer in call:
                waiting = self._waiting.get(answer.id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        except grpc.aio.AioRpcError as failure:
            error = failure
        finally:
            self._end(error)

    async def _requests(self) -> AsyncIterator[index_pb2.SearchStreamRequest]:
        while (request := await self._unsent.get()) is not None:
            yield request

    def _end(self, error: Exception) -> None:
        self.is_over = True
        self._unsent.put_nowait(None)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)

    async def close(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
