"""Multiplexing of the searches that one index process gets, over one long call: docs/adr/0018.

What gathers while a message is on its way goes out with the next one. Searches that differ in
nothing but their queries travel as one search of all these queries.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import grpc

from mmesh import wire
from mmesh.api.index.v1 import index_pb2, index_pb2_grpc
from mmesh.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidVector,
    MessageTooLarge,
    MmeshError,
    Unavailable,
)
from mmesh.serving import logs
from mmesh.serving.deadline import Deadline

logger = logging.getLogger(__name__)

MOST_SEARCHES = 32
"""Searches in one message: with `replica.STREAMED_BYTES` for each it stays below 4 MB."""
MOST_ROWS = 4
"""Queries that travel as one search. More would save little, and the process that works on some of
them while others are on their way back is never idle."""


Reply = tuple[index_pb2.SearchResponse, Sequence[index_pb2.HitList]]
"""The response to all that travelled together, and of its lists those that answer one search."""


@dataclass(slots=True, eq=False)
class _Asked:
    """A search, and who waits for it."""

    request: index_pb2.SearchRequest
    rows: int
    """Queries of the search."""
    deadline: Deadline
    request_id: str
    reply: asyncio.Future[Reply]
    goes_alone: bool = False
    sent_as: int = 0
    """Number of the search that it went out with."""

    @property
    def travels_with(self) -> object:
        """What two searches have in common that differ in nothing but their queries."""
        if self.goes_alone:
            return self
        one, queries = self.request, self.request.queries
        condition = one.filter.SerializeToString() if one.HasField("filter") else None
        what = (one.collection, one.model_fingerprint, tuple(one.modalities), one.limit, condition)
        return (*what, one.consistency, one.token, queries.dim, queries.data_type)


class SearchChannel:
    """Searches one process; the call is opened when it is needed, and anew after it ended."""

    def __init__(self, stub: index_pb2_grpc.IndexServiceStub) -> None:
        self._stub = stub
        self._link: _Link | None = None

    async def search(self, request: index_pb2.SearchRequest, deadline: Deadline) -> Reply:
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
        self._unsent: list[_Asked] = []
        self._sent: dict[int, list[_Asked]] = {}
        self._cancelled: list[int] = []
        self._has_news = asyncio.Event()
        self._running = asyncio.create_task(self._run(stub))

    async def search(self, request: index_pb2.SearchRequest, deadline: Deadline) -> Reply:
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        rows = wire.row_count(request.queries)
        asked = _Asked(request, rows, deadline, logs.request_id.get(), reply)
        self._unsent.append(asked)
        self._has_news.set()
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await reply
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before it answered") from None
        finally:
            if reply.cancelled():
                self._forget(asked)

    def _forget(self, asked: _Asked) -> None:
        together = self._sent.get(asked.sent_as, [])
        if together and all(one.reply.done() for one in together):
            del self._sent[asked.sent_as]
            self._cancelled.append(asked.sent_as)
            self._has_news.set()

    async def _run(self, stub: index_pb2_grpc.IndexServiceStub) -> None:
        error: Exception = Unavailable("it shuts down")
        try:
            requests: Any = self._requests()  # stubs know blocking calls only
            call: Any = stub.SearchStream(requests)
            async for response in call:
                for answer in response.answers:
                    self._settle(answer)
        except grpc.aio.AioRpcError as failure:
            error = failure
        except Exception:  # a defect: those who wait must hear of it, and nobody reads this task
            logger.exception("search channel failed")
            error = InternalError("a defect of mmesh; the gateway's log has it")
        finally:
            self._end(error)

    async def _requests(self) -> AsyncIterator[index_pb2.SearchStreamRequest]:
        while await self._has_news.wait() and not self.is_over:
            taken, cancelled = self._unsent[:MOST_SEARCHES], self._cancelled
            self._unsent, self._cancelled = self._unsent[MOST_SEARCHES:], []
            if not self._unsent:
                self._has_news.clear()
            searches = [self._send(together) for together in _grouped(taken)]
            if searches or cancelled:
                yield index_pb2.SearchStreamRequest(searches=searches, cancelled_ids=cancelled)

    def _send(self, together: list[_Asked]) -> index_pb2.StreamedSearch:
        number = next(self._numbers)
        self._sent[number] = together
        for asked in together:
            asked.sent_as = number
        return index_pb2.StreamedSearch(
            id=number,
            search=_joined([asked.request for asked in together]),
            timeout_seconds=max(asked.deadline.remaining() for asked in together),
            request_id=together[0].request_id,
        )

    def _settle(self, answer: index_pb2.StreamedAnswer) -> None:
        together = self._sent.pop(answer.id, [])
        if answer.HasField("problem"):
            self._fail(together, wire.problem_from_pb(answer.problem))
            return
        response, start = answer.response, 0
        width = len(response.lists) // max(1, sum(asked.rows for asked in together))
        for asked in together:
            end = start + asked.rows * width
            if not asked.reply.done():
                asked.reply.set_result((response, response.lists[start:end]))
            start = end

    def _fail(self, together: Sequence[_Asked], error: MmeshError) -> None:
        if isinstance(error, InvalidVector | MessageTooLarge) and len(together) > 1:  # whose is it?
            for asked in together:
                asked.goes_alone = True
            self._unsent += together
            self._has_news.set()
        else:
            _fail(together, error)

    def _end(self, error: Exception) -> None:
        self.is_over = True
        self._has_news.set()
        for together in (self._unsent, *self._sent.values()):
            _fail(together, error)

    async def close(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)


def _grouped(searches: Iterable[_Asked]) -> list[list[_Asked]]:
    """Return the searches that somebody still waits for, by what travels together."""
    groups: list[list[_Asked]] = []
    growing: dict[object, list[_Asked]] = {}
    for asked in searches:
        if asked.reply.done():
            continue
        with_whom = asked.travels_with
        group = growing.get(with_whom)
        if group is None or sum(one.rows for one in group) + asked.rows > MOST_ROWS:
            group = growing[with_whom] = []
            groups.append(group)
        group.append(asked)
    return groups


def _joined(requests: Sequence[index_pb2.SearchRequest]) -> index_pb2.SearchRequest:
    """Return a search of the queries of all requests, which differ in nothing else."""
    if len(requests) == 1:
        return requests[0]
    joined = index_pb2.SearchRequest()
    joined.CopyFrom(requests[0])
    joined.queries.values = b"".join(one.queries.values for one in requests)
    return joined


def _fail(searches: Iterable[_Asked], error: Exception) -> None:
    for asked in searches:
        if not asked.reply.done():
            asked.reply.set_exception(error)
