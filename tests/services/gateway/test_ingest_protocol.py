"""The protocol of an ingest stream, as a client of the gateway sees it."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from mmesh.api.candidate.v1 import candidate_pb2
from mmesh.api.content.v1 import content_pb2
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.errors import Overloaded

INVALID = grpc.StatusCode.INVALID_ARGUMENT
METHOD = "/mmesh.api.gateway.v1.RetrievalService/Ingest"


def batch(sequence: int, **options: object) -> pb.IngestRequest:
    content = content_pb2.Content(parts=[content_pb2.Part(text="word")])
    candidates = [candidate_pb2.Candidate(id=f"n{sequence}", content=content)]
    step = {"sequence": sequence, "candidates": candidates} | options
    return pb.IngestRequest(batch=pb.IngestBatch(**step))


def opening(collection: str = "photos", ingest_id: str = "i") -> pb.IngestRequest:
    return pb.IngestRequest(open=pb.IngestOpen(collection=collection, ingest_id=ingest_id))


async def events_of(stub, *messages: pb.IngestRequest) -> list[pb.IngestResponse]:
    return [event async for event in stub.Ingest(iter(messages), timeout=10)]


async def all_of(call) -> list[object]:
    return [event async for event in call]


# -- what is refused


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "INVALID_REQUEST"),
        ([pb.IngestRequest(batch=pb.IngestBatch(sequence=1))], "INVALID_REQUEST"),
        ([pb.IngestRequest(open=pb.IngestOpen(ingest_id=""))], "INVALID_FIELD"),
        ([pb.IngestRequest(open=pb.IngestOpen(ingest_id="x" * 65))], "INVALID_FIELD"),
    ],
    ids=["nothing", "a batch first", "no ingest id", "an ingest id of 65 bytes"],
)
async def test_an_ingest_must_be_opened_well(stub, refusal, messages, reason):
    refused = await refusal(events_of(stub, *messages))
    assert (refused.code, refused.reason) == (INVALID, reason)


async def test_an_ingest_needs_a_collection(stub, refusal):
    refused = await refusal(events_of(stub, opening("unknown")))
    assert (refused.code, refused.metadata) == (
        grpc.StatusCode.NOT_FOUND,
        {"collection": "unknown"},
    )


async def test_an_ingest_is_opened_once(stub, refusal):
    refused = await refusal(events_of(stub, opening(), opening()))
    assert (refused.code, refused.reason) == (INVALID, "INVALID_REQUEST")


@pytest.mark.parametrize("sequences", [(0,), (-1,), (1, 1), (1, 3)], ids=str)
async def test_sequences_of_an_ingest_rise_by_one(stub, refusal, sequences):
    refused = await refusal(events_of(stub, opening(), *map(batch, sequences)))
    assert (refused.code, refused.reason) == (INVALID, "INVALID_FIELD")
    assert refused.fields == ["batch.sequence"]


async def test_an_ingest_that_goes_on_after_a_break_begins_where_it_was(stub, index):
    events = await events_of(stub, opening(), batch(7), batch(8))
    assert [event.ack.through_sequence for event in events if event.HasField("ack")] == [7, 8]
    assert list(index.stored) == ["n7", "n8"]


@pytest.mark.parametrize("count", [0, 257])
async def test_a_batch_has_1_to_256_candidates(stub, refusal, count):
    one = batch(1).batch.candidates[0]
    refused = await refusal(events_of(stub, opening(), batch(1, candidates=[one] * count)))
    assert (refused.code, refused.fields) == (INVALID, ["batch.candidates"])


@pytest.mark.parametrize("data", [b"\xff\xfe\xfd", b"\x07\xff"], ids=["garbage", "half a message"])
async def test_a_stream_with_bytes_that_are_no_message_is_an_invalid_argument(
    gateway, refusal, data
):
    messages = [opening().SerializeToString(), data]
    refused = await refusal(all_of(gateway.stream_stream(METHOD)(iter(messages), timeout=10)))
    assert refused.code is INVALID


# -- what is told


async def test_the_limits_of_a_stream_are_told_when_it_opens(stub):
    (event,) = await events_of(stub, opening())
    assert (event.opened.window, event.opened.max_candidates) == (8, 256)
    assert event.opened.max_message_bytes == 64 << 20


async def test_small_batches_are_asked_for_after_an_overload(stub, index):
    class Full(Overloaded):
        retry_after_s = 0.01

    upsert, refusals = index.upsert, [Full("full")]

    async def full_at_first(*arguments, **options):
        if refusals:
            raise refusals.pop()
        return await upsert(*arguments, **options)

    index.upsert = full_at_first
    events = await events_of(stub, opening(), *map(batch, range(1, 20)))
    slower = [event.slow_down.max_candidates for event in events if event.HasField("slow_down")]
    assert slower == [16, 256]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[:3] == ["opened", "slow_down", "ack"]
    assert kinds.count("ack") == 19


async def test_a_client_that_goes_away_leaves_nothing_running(stub, encoder):
    hang = encoder.hang("encode")
    before = len(asyncio.all_tasks())
    call = stub.Ingest(iter([opening(), batch(1)]), timeout=10)
    assert (await call.read()).HasField("opened")
    await hang.begun.wait()
    call.cancel()
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > before:  # noqa: ASYNC110  # nothing tells but looking
            await asyncio.sleep(0.001)
