"""Searches that share a call to an index process: who gets which answer, and what breaks."""

from __future__ import annotations

import asyncio
import random

import grpc
import numpy as np
import pytest

from mmesh import wire
from mmesh.api.index.v1 import index_pb2 as pb
from mmesh.api.index.v1 import index_pb2_grpc as rpc
from mmesh.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    InvalidVector,
    MessageTooLarge,
    Unavailable,
)
from mmesh.serving import logs
from mmesh.serving.deadline import Deadline
from mmesh.wire.transport import open_channel
from services.gateway.rpc import answer_of
from services.gateway.shards.search_channel import MOST_ROWS, SearchChannel

MODALITIES = (1, 2)


class Index(rpc.IndexServiceServicer):
    """Answers by the name of the collection, in an order of its own.

    The hits of a query are named by it and the modality.
    """

    def __init__(self):
        self.calls, self.searches, self.cancelled = 0, [], []

    async def SearchStream(self, request_iterator, context):  # gRPC names it
        self.calls += 1
        async for request in request_iterator:
            self.searches += request.searches
            self.cancelled += request.cancelled_ids
            names = {one.search.collection for one in request.searches}
            if "end" in names:
                return
            if "break" in names:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
            wanted = [one for one in request.searches if one.search.collection != "never"]
            random.Random(0).shuffle(wanted)
            if wanted:
                yield pb.SearchStreamResponse(answers=map(_answer_to, wanted))

    @property
    def rows(self):
        """Queries of each search that came."""
        return [wire.row_count(one.search.queries) for one in self.searches]


def _answer_to(streamed):
    search = streamed.search
    if search.collection == "missing":
        problem = wire.problem_to_pb(CollectionNotFound("missing"))
        return pb.StreamedAnswer(id=streamed.id, problem=problem)
    queries = wire.vectors_from_pb(search.queries)
    if search.collection == "large" and len(queries) > 1:
        problem = wire.problem_to_pb(MessageTooLarge("ask for fewer"))
        return pb.StreamedAnswer(id=streamed.id, problem=problem)
    if np.isnan(queries).any():
        problem = wire.problem_to_pb(InvalidVector("vectors[0]", "is not finite"))
        return pb.StreamedAnswer(id=streamed.id, problem=problem)
    lists = [
        pb.HitList(ids=[f"{query[0]:.0f} {modality}"])
        for query in queries
        for modality in search.modalities
    ]
    return pb.StreamedAnswer(id=streamed.id, response={"lists": lists, "token": search.collection})


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
        stream = SearchChannel(rpc.IndexServiceStub(channel))
        yield stream
        await stream.close()
    await server.stop(None)


async def search(stream, collection, *numbers, seconds=10.0, **options):
    queries = wire.vectors_to_pb(np.array([[n, 1] for n in numbers or (0,)], np.float32))
    request = pb.SearchRequest(
        collection=collection, queries=queries, modalities=MODALITIES, **options
    )
    response, lists = await stream.search(request, Deadline.after(seconds))
    assert response.token == collection
    return [hits.ids[0] for hits in lists]


def hits_of(*numbers):
    return [f"{number} {modality}" for number in numbers for modality in MODALITIES]


async def test_searches_whose_answers_are_too_large_together_are_answered_one_by_one(stream, index):
    found = await asyncio.gather(*(search(stream, "large", number) for number in range(4)))
    assert found == [hits_of(number) for number in range(4)]
    assert index.calls == 1
    with pytest.raises(MessageTooLarge):
        await search(stream, "large", 1, 2)


async def test_all_share_a_call_and_get_their_own_answers(stream, index):
    asked = [(f"c{number % 7}", number) for number in range(100)]
    found = await asyncio.gather(*(search(stream, *one) for one in asked))
    assert found == [hits_of(number) for _, number in asked]
    assert index.calls == 1


async def test_what_differs_in_its_queries_only_travels_together(stream, index):
    numbers = [(1,), (2, 3), (4,), (5, 6, 7), (8,) * (MOST_ROWS + 1)]
    found = await asyncio.gather(*(search(stream, "c", *one) for one in numbers))
    assert found == [hits_of(*one) for one in numbers]
    assert index.rows == [4, 3, MOST_ROWS + 1]


async def test_what_differs_otherwise_does_not(stream, index):
    condition = {"compare": {"attribute": "a", "operator": 1, "value": {"integer_value": 1}}}
    options = [{}, {"limit": 3}, {"token": "e:1"}, {"filter": condition}, {"consistency": 3}]
    await asyncio.gather(*(search(stream, "c", 1, **one) for one in options * 2))
    assert index.rows == [2] * len(options)


async def test_a_bad_query_fails_its_own_search_only(stream, index):
    found = await asyncio.gather(
        *(search(stream, "c", number) for number in (1, float("nan"), 2)), return_exceptions=True
    )
    assert [found[0], found[2]] == [hits_of(1), hits_of(2)]
    assert isinstance(found[1], InvalidVector)
    assert index.rows == [3, 1, 1, 1]


async def test_a_problem_is_the_error_that_it_stands_for(stream, index):
    with pytest.raises(CollectionNotFound, match="missing"):
        await search(stream, "missing")
    assert await search(stream, "c", 1) == hits_of(1)
    assert index.calls == 1


@pytest.mark.parametrize(("name", "error"), [("end", Unavailable), ("break", grpc.aio.AioRpcError)])
async def test_a_call_that_ends_fails_those_who_wait_and_the_next_opens_another(
    stream, index, name, error
):
    outcomes = await asyncio.gather(
        *(search(stream, one) for one in ("never", "never", name)), return_exceptions=True
    )
    assert [type(one) for one in outcomes] == [error] * 3
    assert await search(stream, "c", 1) == hits_of(1)
    assert index.calls == 2


@pytest.mark.parametrize("name", ["end", "break"])
async def test_a_call_that_ends_while_it_is_written_to_is_unavailable(stream, name):
    outcomes = []
    for number in range(100):
        asking = []
        for one in ("c", "c", "c", name, *("c",) * 8):
            asking.append(asyncio.create_task(answer_of(search(stream, one), "it")))
            for _ in range(number % 7):  # turns of the loop, so that each round ends elsewhere
                await asyncio.sleep(0)
        outcomes += await asyncio.gather(*asking, return_exceptions=True)
    failed = [one for one in outcomes if isinstance(one, Exception)]
    assert len(failed) >= 100
    assert {type(one) for one in failed} == {Unavailable}


async def test_a_deadline_is_kept_and_told_to_the_process(stream, index):
    with pytest.raises(DeadlineExceeded):
        await search(stream, "never", seconds=0.1)
    await search(stream, "c")
    assert 0 < index.searches[0].timeout_seconds <= 0.1
    assert index.cancelled == [index.searches[0].id]


async def test_searches_that_nobody_waits_for_are_cancelled(stream, index):
    logs.request_id.set("r-1")
    first, second = (asyncio.create_task(search(stream, "never", n)) for n in (1, 2))
    for task in (first, second):
        await asyncio.sleep(0.05)
        assert not index.cancelled  # one of the two still waits
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await search(stream, "c")
    assert index.cancelled == [index.searches[0].id]
    assert index.searches[0].request_id == "r-1"


async def test_a_search_that_is_cancelled_before_it_is_sent_is_not_sent(stream, index):
    await search(stream, "c", 1)
    task = asyncio.create_task(search(stream, "c", 2))
    await asyncio.sleep(0)
    task.cancel()
    assert await search(stream, "c", 3) == hits_of(3)
    assert index.rows == [1, 1]


async def test_closing_ends_searches_that_still_run(stream):
    task = asyncio.create_task(search(stream, "never"))
    await asyncio.sleep(0.05)
    await stream.close()
    with pytest.raises(Unavailable):
        await task


async def test_a_process_that_is_not_there_is_unavailable():
    async with open_channel("127.0.0.1:1") as channel:
        stream = SearchChannel(rpc.IndexServiceStub(channel))
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await search(stream, "c")
            assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
        await stream.close()
