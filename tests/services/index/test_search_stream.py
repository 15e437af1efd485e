"""Searches in one long call: order, problems, deadlines, cancelling, stopping, bad messages."""

from __future__ import annotations

import asyncio
import gc
import math
from contextlib import asynccontextmanager, suppress

import grpc
import pytest
from prometheus_client import REGISTRY

from mmesh.api.filter.v1 import filter_pb2
from mmesh.api.index.v1 import index_pb2 as pb
from mmesh.api.index.v1 import index_pb2_grpc as rpc
from mmesh.errors import CollectionNotFound
from mmesh.serving import handlers
from mmesh.wire.transport import open_channel
from services.index import search_stream
from services.index.search_stream import METHOD, SearchStream


class Index(rpc.IndexServiceServicer):
    """Answers with the name of the collection; some names have a meaning."""

    def __init__(self):
        self.stopping, self.free = asyncio.Event(), asyncio.Event()
        self.begun, self.cancelled = [], []

    async def SearchStream(self, request_iterator, context):  # gRPC names it
        stream = SearchStream(self._search, self.stopping, most_bytes=1000)
        async for answer in stream.answers(request_iterator):
            yield answer

    async def _search(self, request, response, deadline):
        self.begun.append(request.collection)
        if request.collection == "missing":
            raise CollectionNotFound("missing")
        if request.collection == "defect":
            raise ZeroDivisionError
        if request.collection.startswith("slow"):
            try:
                await self.free.wait()
            except asyncio.CancelledError:
                self.cancelled.append(request.collection)
                raise
        response.token = request.collection
        if request.collection == "large":
            response.lists.add(ids=["a" * 1000])


def streamed(number, collection, condition=None, **options):
    search = pb.SearchRequest(collection=collection, filter=condition)
    return pb.StreamedSearch(id=number, search=search, **options)


def large_filter():
    """A filter of 300,000 values, which takes longer to parse than a loop may be held."""
    values = [filter_pb2.AttributeValue(integer_value=n) for n in range(300_000)]
    member = filter_pb2.Filter()
    getattr(member, "in").attribute = "a"
    getattr(member, "in").values.extend(values)
    return member


class Caller:
    """Writes and reads one stream."""

    def __init__(self, stream):
        self.stream = stream
        self._answers = []

    async def ask(self, number, collection, **options):
        search = streamed(number, collection, **options)
        await self.stream.write(pb.SearchStreamRequest(searches=[search]))

    async def cancel(self, *numbers):
        await self.stream.write(pb.SearchStreamRequest(cancelled_ids=numbers))

    async def message(self):
        """Return the answers of the next message: id, and reason or token."""
        got = await asyncio.wait_for(self.stream.read(), 10)
        assert got is grpc.aio.EOF or got.answers
        found = [] if got is grpc.aio.EOF else got.answers
        return [(one.id, one.problem.reason or one.response.token) for one in found]

    async def answer(self):
        """Return the next answer, or None at the end."""
        self._answers = self._answers or await self.message()
        return self._answers.pop(0) if self._answers else None

    async def code(self):
        return await asyncio.wait_for(self.stream.code(), 10)


@asynccontextmanager
async def stream_to(index):
    server = grpc.aio.server()
    rpc.add_IndexServiceServicer_to_server(index, handlers.Guarded(server))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        method = channel.stream_stream(
            f"{METHOD}Stream",
            request_serializer=lambda one: one if type(one) is bytes else one.SerializeToString(),
            response_deserializer=pb.SearchStreamResponse.FromString,
        )
        yield Caller(method())
    await server.stop(None)


@pytest.fixture
def index():
    return Index()


@pytest.fixture
async def caller(index):
    async with stream_to(index) as caller:
        yield caller


async def test_an_answer_that_is_too_large_is_a_problem_of_its_search_alone(caller):
    await caller.ask(1, "large")
    await caller.ask(2, "small")
    answers = sorted([await caller.answer(), await caller.answer()])
    assert answers == [(1, "MESSAGE_TOO_LARGE"), (2, "small")]


async def soon(holds):
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within ten seconds")


async def test_answers_come_as_they_are_ready(caller, index):
    await caller.ask(7, "slow")
    for number in range(20, 10, -1):
        await caller.ask(number, f"c{number}")
    assert [await caller.answer() for _ in range(10)] == [(n, f"c{n}") for n in range(20, 10, -1)]
    index.free.set()
    assert await caller.answer() == (7, "slow")
    await caller.stream.done_writing()
    assert await caller.answer() is None
    assert await caller.code() is grpc.StatusCode.OK


async def test_a_problem_ends_its_search_only_and_says_what_a_call_would(caller):
    await caller.ask(1, "missing")
    await caller.ask(2, "defect")
    await caller.ask(3, "sound")
    assert await caller.answer() == (1, "COLLECTION_NOT_FOUND")
    assert await caller.answer() == (2, "INTERNAL")
    assert await caller.answer() == (3, "sound")


async def test_a_deadline_is_kept(caller, index):
    await caller.ask(1, "slow", timeout_seconds=0.05)
    assert await caller.answer() == (1, "DEADLINE")
    assert index.cancelled == ["slow"]


@pytest.mark.parametrize("seconds", [-1.0, math.nan, -math.inf])
async def test_a_time_that_is_none_is_a_problem(caller, seconds):
    await caller.ask(1, "sound", timeout_seconds=seconds)
    assert await caller.answer() == (1, "INVALID_FIELD")
    await caller.ask(1, "sound", timeout_seconds=math.inf)
    assert await caller.answer() == (1, "sound")


async def test_a_cancelled_search_stops_and_has_no_answer(caller, index):
    await caller.ask(1, "slow")
    await caller.cancel(9, 1)  # nobody asked the other one
    await soon(lambda: index.cancelled)
    await caller.ask(1, "again")
    assert await caller.answer() == (1, "again")


async def test_a_search_may_be_cancelled_by_the_message_that_asks_for_it(
    caller, index, monkeypatch
):
    monkeypatch.setattr(search_stream, "MOST_UNSENT", 2)
    for _ in range(3):  # it must not take up room
        message = pb.SearchStreamRequest(searches=[streamed(1, "slow")], cancelled_ids=[1])
        await caller.stream.write(message)
    await caller.ask(1, "again")
    assert await caller.answer() == (1, "again")
    assert not index.begun[:-1]


@pytest.mark.parametrize(
    "message",
    [
        pb.SearchStreamRequest(searches=[streamed(1, "twice")]),
        pb.SearchStreamRequest(searches=[streamed(2, "slow"), streamed(2, "twice")]),
        b"\xff\xff",
    ],
)
async def test_a_message_that_makes_no_sense_ends_the_call(caller, index, message):
    await caller.ask(1, "slow")
    await caller.stream.write(message)
    assert await caller.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert index.cancelled == index.begun


async def test_a_filter_that_is_too_large_is_refused_before_it_is_parsed(caller, index):
    message = pb.SearchStreamRequest(searches=[streamed(1, "large", large_filter())])
    assert 1 << 20 < message.ByteSize() < 4 << 20
    await caller.stream.write(message)
    assert await caller.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "too large" in await caller.stream.details()
    assert not index.begun


async def test_what_was_read_is_answered_before_a_process_stops(caller, index):
    await caller.ask(1, "slow")
    await soon(lambda: index.begun)
    index.stopping.set()
    await asyncio.sleep(0.05)
    await caller.ask(2, "late")
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.shield(caller.stream.code()), 0.05)
    index.free.set()
    assert await caller.answer() == (1, "slow")
    assert await caller.code() is grpc.StatusCode.OK


async def test_searches_of_a_caller_that_is_gone_stop(caller, index):
    await caller.ask(1, "slow 1")
    await caller.ask(2, "slow 2")
    await soon(lambda: len(index.begun) == 2)
    caller.stream.cancel()
    await soon(lambda: sorted(index.cancelled) == ["slow 1", "slow 2"])


async def test_no_more_is_read_than_there_is_room_for(caller, index, monkeypatch):
    monkeypatch.setattr(search_stream, "MOST_UNSENT", 3)
    for number in range(5):
        await caller.ask(number, f"slow {number}")
    await asyncio.sleep(0.1)
    assert len(index.begun) == 3
    await caller.cancel(0)  # is not read, either
    index.free.set()
    assert sorted([await caller.answer() for _ in range(5)]) == [
        (number, f"slow {number}") for number in range(5)
    ]


async def test_what_comes_together_and_is_ready_together_shares_a_message(caller):
    searches = [streamed(number, f"c{number}") for number in range(20)]
    await caller.stream.write(pb.SearchStreamRequest(searches=searches))
    assert await caller.message() == [(number, f"c{number}") for number in range(20)]


async def test_a_message_does_not_grow_without_end(caller, monkeypatch):
    monkeypatch.setattr(search_stream, "ENOUGH_BYTES", 100)
    searches = [streamed(number, f"{number:040}") for number in range(6)]
    await caller.stream.write(pb.SearchStreamRequest(searches=searches))
    assert [len(await caller.message()) for _ in range(2)] == [3, 3]


async def test_each_search_counts_as_a_call_and_the_long_call_as_none(caller):
    def seen(method, code):
        labels = {"method": method, "code": code}
        return REGISTRY.get_sample_value("mmesh_rpc_seconds_count", labels) or 0

    before = seen(METHOD, "OK"), seen(METHOD, "NOT_FOUND")
    for number, name in enumerate(("a", "b", "missing")):
        await caller.ask(number, name)
        await caller.answer()
    await caller.stream.done_writing()
    assert await caller.code() is grpc.StatusCode.OK
    assert (seen(METHOD, "OK"), seen(METHOD, "NOT_FOUND")) == (before[0] + 2, before[1] + 1)
    assert not any(
        sample.labels["method"].endswith("/SearchStream")
        for metric in REGISTRY.collect()
        if metric.name == "mmesh_rpc_seconds"
        for sample in metric.samples
    )


async def test_a_search_whose_answer_cannot_be_made_is_answered_all_the_same():
    async def requests():
        yield pb.SearchStreamRequest(searches=[streamed(1, "c"), streamed(2, "c")])

    async def broken(search):
        if search.id == 1:
            raise RuntimeError("defect")
        return pb.StreamedAnswer(id=search.id)

    stream = SearchStream(None, asyncio.Event())
    stream._answer = broken
    answers = []
    async with asyncio.timeout(5):
        async for message in stream.answers(requests()):
            answers += [(answer.id, answer.problem.reason) for answer in message.answers]
    assert sorted(answers) == [(1, "INTERNAL"), (2, "")]


async def test_requests_that_break_off_while_the_call_stops_leave_no_error_unread(caplog):
    gc.collect()  # what other tests left
    caplog.clear()
    stopping = asyncio.Event()

    async def requests():
        yield pb.SearchStreamRequest(searches=[streamed(1, "c")])
        stopping.set()
        raise RuntimeError("the connection broke")

    async def answer(_request, _response, _deadline):
        pass

    with suppress(RuntimeError):
        async for _ in SearchStream(answer, stopping).answers(requests()):
            pass
    gc.collect()
    assert "never retrieved" not in caplog.text
