"""The client's side of an ingest, against a gateway that breaks off every few batches."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import grpc
import pytest

from mmesh import AsyncClient, Candidate, Content, Rejected, ingest
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.api.gateway.v1 import gateway_pb2_grpc as rpc
from mmesh.errors import (
    CollectionFull,
    DeadlineExceeded,
    InvalidRequest,
    MessageTooLarge,
    MmeshError,
    Unavailable,
)
from mmesh.ingest import Ingest
from mmesh.wire.errors import DETAILS_KEY, status_of
from mmesh.wire.ingest_link import Batch
from tests.effort import patient

COUNT = 50
PATIENCE_S = 0.05
OPENED = pb.IngestOpened(window=2, max_candidates=256, max_message_bytes=1 << 20)


class BreakingGateway(rpc.RetrievalServiceServicer):
    """Stores what it gets, and ends every stream after its third batch, in one of the ways."""

    def __init__(self, ending: str) -> None:
        self.ending = ending
        self.stored: dict[int, list[str]] = {}
        self.streams = 0

    async def Ingest(self, requests, context):
        self.streams += 1
        yield pb.IngestResponse(opened=OPENED)
        taken = 0
        async for request in requests:
            if not request.HasField("batch"):
                continue
            batch = request.batch
            new = batch.sequence not in self.stored
            self.stored[batch.sequence] = [candidate.id for candidate in batch.candidates]
            stored = len(batch.candidates) if new else 0
            ack = pb.IngestAck(through_sequence=batch.sequence, stored=stored)
            yield pb.IngestResponse(ack=ack)
            taken += 1
            if self.ending == "refusing":
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
            if taken == 3:
                if self.ending == "draining":
                    yield pb.IngestResponse(draining=pb.IngestDraining())
                else:
                    # In the midst of the next batch, which the client's source is slow to give.
                    await asyncio.sleep(0.02)
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


async def slow_source(failing_at: int = COUNT) -> AsyncIterator[Candidate]:
    for number in range(COUNT):
        if number == failing_at:
            raise OSError("the disk is gone")
        yield Candidate(f"n{number}", Content.of(f"ship {number}"))
        await asyncio.sleep(0.002)


def plain_source() -> Iterator[Candidate]:
    for number in range(COUNT):
        yield Candidate(f"n{number}", Content.of(f"ship {number}"))


@pytest.fixture
async def gateway(request) -> AsyncIterator[BreakingGateway]:
    servicer = BreakingGateway(request.param)
    server = grpc.aio.server()
    rpc.add_RetrievalServiceServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield servicer
    await server.stop(0)


@pytest.mark.parametrize("gateway", ["draining", "broken"], indirect=True)
@pytest.mark.parametrize("source", [slow_source, plain_source])
async def test_nothing_that_was_taken_is_lost_with_a_connection(gateway, source):
    async with AsyncClient(gateway.address) as client:
        report = await client.ingest("c", source(), batch_size=7)
    arrived = [id for sequence in sorted(gateway.stored) for id in gateway.stored[sequence]]
    assert gateway.streams > 1
    assert arrived == [f"n{number}" for number in range(COUNT)]
    assert (report.stored, report.rejected) == (COUNT, ())


@pytest.mark.parametrize("gateway", ["draining", "broken"], indirect=True)
async def test_what_a_failing_source_gave_before_is_stored(gateway):
    async with AsyncClient(gateway.address) as client:
        with pytest.raises(OSError, match="the disk is gone"):
            await client.ingest("c", slow_source(failing_at=30), batch_size=7)
    arrived = [id for sequence in sorted(gateway.stored) for id in gateway.stored[sequence]]
    assert arrived == [f"n{number}" for number in range(30)]


async def cancels_its_task() -> None:
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


async def awaits_what_was_stopped() -> None:
    producer = asyncio.create_task(asyncio.sleep(60))
    producer.cancel()
    await producer


async def leaves_the_program() -> None:
    sys.exit("row 2 is bad")


@pytest.mark.parametrize("gateway", ["never"], indirect=True)
@pytest.mark.parametrize(
    ("ends", "raised"),
    [
        (cancels_its_task, asyncio.CancelledError),
        (awaits_what_was_stopped, asyncio.CancelledError),
        (leaves_the_program, SystemExit),
    ],
)
async def test_whatever_ends_a_source_is_raised_and_keeps_nobody_waiting(gateway, ends, raised):
    async def source() -> AsyncIterator[Candidate]:
        yield Candidate("first", Content.of("ship"))
        await ends()

    async with AsyncClient(gateway.address) as client:
        with pytest.raises(raised):
            async with asyncio.timeout(patient(10)):
                await client.ingest("c", source())
    assert gateway.stored == {1: ["first"]}


@pytest.mark.parametrize("gateway", ["refusing"], indirect=True)
async def test_a_source_is_ended_when_the_ingest_fails(gateway):
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[Candidate]:
        try:
            while True:
                yield Candidate("n", Content.of("ship"))
                await asyncio.sleep(0)
        finally:
            ended.set()

    async with AsyncClient(gateway.address) as client:
        source = endless()
        with pytest.raises(InvalidRequest):
            await client.ingest("c", source)
        await source.aclose()
    assert ended.is_set()


class RestartingGateway(rpc.RetrievalServiceServicer):
    """Drains each of its first streams a while after all that came is stored."""

    def __init__(self, restarts: int) -> None:
        self.restarts, self.streams, self.is_settled = restarts, 0, asyncio.Event()

    async def Ingest(self, requests, context):
        self.streams += 1
        if self.streams > self.restarts:
            self.is_settled.set()
        yield pb.IngestResponse(opened=OPENED)
        sequence = 0
        async for request in requests:
            if request.HasField("batch"):
                sequence = request.batch.sequence
                ack = pb.IngestAck(through_sequence=sequence, stored=len(request.batch.candidates))
                yield pb.IngestResponse(ack=ack)
            if self.streams <= self.restarts and (sequence or self.streams > 1):
                await asyncio.sleep(2 * PATIENCE_S)
                yield pb.IngestResponse(draining=pb.IngestDraining())
                return


class FailingGateway(rpc.RetrievalServiceServicer):
    """Opens every stream, and stores nothing."""

    streams = 0

    def __init__(self, code: grpc.StatusCode) -> None:
        self.code = code

    async def Ingest(self, requests, context):
        self.streams += 1
        yield pb.IngestResponse(opened=OPENED)
        async for request in requests:
            if request.HasField("batch"):
                await context.abort(self.code, "the index is away")


@asynccontextmanager
async def serving(servicer) -> AsyncIterator[str]:
    server = grpc.aio.server()
    rpc.add_RetrievalServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.mark.parametrize("restarts", [1, 3])
async def test_a_source_that_takes_its_time_outlives_restarts_of_the_mesh(restarts):
    gateway = RestartingGateway(restarts)

    async def source() -> AsyncIterator[Candidate]:
        yield Candidate("before", Content.of("ship"))
        await gateway.is_settled.wait()
        yield Candidate("after", Content.of("ship"))

    async with serving(gateway) as address, AsyncClient(address) as client:
        report = await client.ingest("c", source(), batch_size=1, patience_s=PATIENCE_S)
    assert (report.stored, gateway.streams) == (2, restarts + 1)


@pytest.mark.parametrize("error", [Unavailable, DeadlineExceeded])
async def test_patience_ends_where_the_mesh_stores_nothing(error):
    gateway = FailingGateway(grpc.StatusCode[error.code.name])
    async with serving(gateway) as address, AsyncClient(address) as client:
        with pytest.raises(error):
            await client.ingest("c", slow_source(), batch_size=1, patience_s=PATIENCE_S)
    assert gateway.streams > 1


class HungGateway(rpc.RetrievalServiceServicer):
    """Says nothing any more after so many answers, and takes everything and ends nothing."""

    def __init__(self, answers: int) -> None:
        self.answers, self.streams = answers, 0

    async def Ingest(self, requests, context):
        self.streams += 1
        async for request in requests:
            if self.answers:
                self.answers -= 1
                if request.HasField("open"):
                    yield pb.IngestResponse(opened=OPENED)
                else:
                    ack = pb.IngestAck(through_sequence=request.batch.sequence, stored=1)
                    yield pb.IngestResponse(ack=ack)
        await asyncio.Event().wait()


TWO = [Candidate(f"n{number}", Content.of("ship")) for number in range(2)]


@pytest.mark.parametrize("answers", [0, 1, 2])
async def test_a_gateway_that_hangs_counts_as_away(answers, monkeypatch):
    monkeypatch.setattr(ingest, "SILENCE_S", 3 * PATIENCE_S)
    gateway = HungGateway(answers)
    async with serving(gateway) as address, AsyncClient(address) as client:
        with pytest.raises(Unavailable, match="said nothing"):
            await client.ingest("c", TWO, batch_size=1, patience_s=PATIENCE_S)
    assert gateway.streams > 1


async def test_an_ingest_whose_gateway_hangs_at_the_very_end_is_complete(monkeypatch):
    monkeypatch.setattr(ingest, "SILENCE_S", 10 * PATIENCE_S)
    gateway = HungGateway(answers=3)
    async with serving(gateway) as address, AsyncClient(address) as client:
        report = await client.ingest("c", TWO, batch_size=1, patience_s=PATIENCE_S)
    assert (report.stored, gateway.streams) == (2, 1)


async def test_a_gateway_that_has_nothing_to_answer_may_be_silent(monkeypatch):
    monkeypatch.setattr(ingest, "SILENCE_S", 10 * PATIENCE_S)

    async def source() -> AsyncIterator[Candidate]:
        yield Candidate("before", Content.of("ship"))
        await asyncio.sleep(15 * PATIENCE_S)
        yield Candidate("after", Content.of("ship"))

    gateway = BreakingGateway("never")
    async with serving(gateway) as address, AsyncClient(address) as client:
        report = await client.ingest("c", source(), batch_size=1, patience_s=PATIENCE_S)
    assert (report.stored, gateway.streams) == (2, 1)


class RefusingGateway(rpc.RetrievalServiceServicer):
    """Refuses every batch, while the client may be writing the next one."""

    def __init__(self, error: MmeshError) -> None:
        self.error, self.streams = error, 0

    async def Ingest(self, requests, context):
        self.streams += 1
        yield pb.IngestResponse(opened=OPENED)
        async for request in requests:
            if request.HasField("batch"):
                status = status_of(self.error)
                details = ((DETAILS_KEY, status.SerializeToString()),)
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, status.message, details)


@pytest.mark.parametrize("error", [MessageTooLarge("larger than max"), CollectionFull("full")])
async def test_a_refusal_that_no_repetition_mends_ends_an_ingest_by_its_name(error):
    for _ in range(8):
        gateway = RefusingGateway(error)
        async with serving(gateway) as address, AsyncClient(address) as client:
            with pytest.raises(type(error)):
                await client.ingest("c", plain_source(), batch_size=1)
        assert gateway.streams <= 2


class ShrinkingGateway(rpc.RetrievalServiceServicer):
    """Takes smaller messages on every further stream, and ends each at its first batch."""

    streams = 0

    async def Ingest(self, requests, context):
        self.streams += 1
        opened = pb.IngestOpened(window=2, max_candidates=256)
        opened.max_message_bytes = (1 << 20) >> 5 * (self.streams - 1)
        yield pb.IngestResponse(opened=opened)
        async for request in requests:
            if request.HasField("batch"):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


async def test_a_batch_that_no_longer_fits_is_named_and_not_sent_again():
    gateway = ShrinkingGateway()
    source = [Candidate("large", Content.of("ship " * 10_000))]
    async with serving(gateway) as address, AsyncClient(address) as client:
        with pytest.raises(MessageTooLarge, match="now at most 32768 are taken"):
            await client.ingest("c", source)
    assert gateway.streams == 2


def refusal_of(sequence: int, count: int) -> pb.IngestRejected:
    return pb.IngestRejected(
        sequence=sequence, candidates=[{"number": n, "id": f"n{n}"} for n in range(count)]
    )


def cost_of_progress(refused: int) -> float:
    """Return the least seconds of one progress after so many refusals."""
    one = Ingest(None, "c", slow_source(), 64, 1.0)  # no stub is used
    full = CollectionFull("full")
    for number in range(refused):
        one._reject(Rejected("n", full, number))
    assert len(one._progress().refused) == refused
    costs = []
    for _ in range(20):
        begin = time.perf_counter()
        assert one._progress().refused == ()
        costs.append(time.perf_counter() - begin)
    return min(costs)


async def test_progress_costs_the_same_however_many_were_refused_before():
    assert cost_of_progress(50_000) < 30 * cost_of_progress(10)


async def test_a_refusal_that_is_repeated_after_a_break_is_told_once():
    one = Ingest(None, "c", slow_source(), 64, 1.0)
    one._sent.append(Batch(1, pb.IngestRequest(), [0, 1], 2))
    one._take_rejected(refusal_of(1, 1))
    assert [refused.number for refused in one._progress().refused] == [0]
    one._take_rejected(refusal_of(1, 2))
    progress = one._progress()
    assert ([refused.number for refused in progress.refused], progress.rejected) == ([1], 2)
