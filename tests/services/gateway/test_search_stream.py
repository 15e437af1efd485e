"""Searches that share a call to an index process: who gets which answer, and what breaks."""

from __future__ import annotations

import asyncio
import random

import grpc
import pytest

from mmesh.api.index.v1 import index_pb2 as pb
from mmesh.api.index.v1 import index_pb2_grpc as rpc
from mmesh.errors import CollectionNotFound, DeadlineExceeded, Unavailable
from mmesh.serving import logs
from mmesh.serving.deadline import Deadline
from mmesh.transport import open_channel
from services.gateway.search_stream import SearchStream


class Index(rpc.IndexServiceServicer):
    """Answers by the name of the collection, in an order of its own."""

    def __init__(self):
        self.calls, self.requests = 0, []

    async def SearchStream(self, request_iterator, context):  # gRPC names it
        self.calls += 1
        waiting = []
        async for request in request_iterator:
            self.requests.append(request)
            name = request.search.collection
            if name == "end":
                return
            if name == "break":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
            if name == "missing":
                problem = {"code": 5, "reason": "COLLECTION_NOT_FOUND", "message": "not there"}
                yield pb.SearchStreamResponse(id=request.id, problem=problem)
            elif name != "never" and request.WhichOneof("step") == "search":
                waiting.append(request)
            if len(waiting) == 10 or (waiting and name == "now"):
                random.Random(0).shuffle(waiting)
                for one in waiting:
                    found = {"token": one.search.collection}
                    yield pb.SearchStreamResponse(id=one.id, response=found)
                waiting = []


@pytest.fixture
async def index():
    return Index()


@pytest.fixture
async def stream(index):
    server = grpc.aio.server()
    rpc.add_IndexServiceServicer_to_server(index, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        stream = SearchStream(rpc.IndexServiceStub(channel))
        yield stream
        await stream.close()
    await server.stop(None)


async def search(stream, name, seconds=10.0):
    response = await stream.search(pb.SearchRequest(collection=name), Deadline.after(seconds))
    return response.token


async def test_all_share_a_call_and_get_their_own_answers(stream, index):
    names = [f"c{number}" for number in range(100)]
    assert await asyncio.gather(*(search(stream, name) for name in names)) == names
    assert index.calls == 1


async def test_a_problem_is_the_error_that_it_stands_for(stream, index):
    with pytest.raises(CollectionNotFound, match="not there"):
        await search(stream, "missing")
    assert await search(stream, "now") == "now"
    assert index.calls == 1


@pytest.mark.parametrize(("name", "error"), [("end", Unavailable), ("break", grpc.aio.AioRpcError)])
async def test_a_call_that_ends_fails_those_who_wait_and_the_next_opens_another(
    stream, index, name, error
):
    outcomes = await asyncio.gather(
        *(search(stream, one) for one in ("never", "never", name)), return_exceptions=True
    )
    assert [type(one) for one in outcomes] == [error] * 3
    assert await search(stream, "now") == "now"
    assert index.calls == 2


async def test_a_deadline_is_kept_and_told_to_the_process(stream, index):
    with pytest.raises(DeadlineExceeded):
        await search(stream, "never", seconds=0.1)
    assert await search(stream, "now") == "now"
    first, cancelled, _ = index.requests
    assert 0 < first.timeout_seconds <= 0.1
    assert (cancelled.id, cancelled.cancel) == (first.id, True)


async def test_a_search_that_nobody_waits_for_is_cancelled(stream, index):
    logs.request_id.set("r-1")
    task = asyncio.create_task(search(stream, "never"))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await search(stream, "now") == "now"
    asked, cancelled, _ = index.requests
    assert (cancelled.id, cancelled.cancel) == (asked.id, True)
    assert asked.request_id == "r-1"


async def test_closing_ends_searches_that_still_run(stream):
    task = asyncio.create_task(search(stream, "never"))
    await asyncio.sleep(0.05)
    await stream.close()
    with pytest.raises(Unavailable):
        await task


async def test_a_process_that_is_not_there_is_unavailable():
    async with open_channel("127.0.0.1:1") as channel:
        stream = SearchStream(rpc.IndexServiceStub(channel))
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await search(stream, "now")
            assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
        await stream.close()
