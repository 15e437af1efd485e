"""Content that cannot be a query or a candidate: refused by name, and nothing beside it is harmed.

The pictures are refused by what encoders decode with; all else by the gateway itself.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Callable

import grpc
import pytest

from mmesh.api.candidate.v1 import candidate_pb2
from mmesh.api.content.v1 import content_pb2
from mmesh.api.filter.v1 import filter_pb2
from mmesh.api.gateway.v1 import gateway_pb2 as pb

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MIB = 1 << 20


@pytest.fixture(autouse=True)
async def the_gateway_goes_on(stub, collection):
    """Search after whatever the test did."""
    yield
    query = text_of("a lighthouse on a cliff")
    reply = await stub.Search(pb.SearchRequest(collection=collection, query=query))
    assert reply.coverage.shards_answered == 2


def text_of(text: str) -> content_pb2.Content:
    return content_pb2.Content(parts=[content_pb2.Part(text=text)])


def image_of(data: bytes, media_type: str = "image/png") -> content_pb2.Content:
    image = content_pb2.Image(data=data, media_type=media_type)
    return content_pb2.Content(parts=[content_pb2.Part(image=image)])


def candidate(candidate_id: str, content: content_pb2.Content) -> candidate_pb2.Candidate:
    return candidate_pb2.Candidate(id=candidate_id, content=content)


def with_attribute(name: str, **value: object) -> candidate_pb2.Candidate:
    found = candidate("bad", text_of("a text with an attribute"))
    found.attributes[name].CopyFrom(filter_pb2.AttributeValue(**value))
    return found


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checked = kind + body
        return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(MIB), 9)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def gif_claiming(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x00\x00\x00\x3b"


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9"/></svg>'

# What is wrong with the content -> content, reason, path of the field inside the content.
BAD_CONTENT: dict[str, tuple[Callable[..., content_pb2.Content], str, str]] = {
    "no parts": (lambda p: content_pb2.Content(), "INVALID_FIELD", ".parts"),
    "17 parts": (
        lambda p: content_pb2.Content(parts=[content_pb2.Part(text="word")] * 17),
        "INVALID_FIELD",
        ".parts",
    ),
    "a part of no kind": (
        lambda p: content_pb2.Content(parts=[content_pb2.Part(text="word"), content_pb2.Part()]),
        "INVALID_FIELD",
        ".parts[1]",
    ),
    "an empty text": (lambda p: text_of(""), "INVALID_FIELD", ".parts[0].text"),
    "a blank text": (lambda p: text_of(" \n\t"), "INVALID_FIELD", ".parts[0].text"),
    "a NUL": (lambda p: text_of("a\0b"), "INVALID_FIELD", ".parts[0].text"),
    "over 1 MiB of text": (
        lambda p: text_of("x" * (MIB + 1)), "INVALID_FIELD", ".parts[0].text",
    ),
    "an empty image": (lambda p: image_of(b""), "INVALID_FIELD", ".parts[0].image.data"),
    "over 20 MiB of image": (
        lambda p: image_of(p.png() + bytes(20 * MIB)), "INVALID_FIELD", ".parts[0].image.data",
    ),
    "a truncated PNG": (
        lambda p: image_of(truncated(p.png())), "INVALID_IMAGE", ".parts[0].image.data",
    ),
    "a truncated JPEG": (
        lambda p: image_of(truncated(p.jpeg())), "INVALID_IMAGE", ".parts[0].image.data",
    ),
    "a PNG of its first 8 bytes": (
        lambda p: image_of(p.png()[:8]), "INVALID_IMAGE", ".parts[0].image.data",
    ),
    "text in disguise": (
        lambda p: image_of(b"I am no picture"), "INVALID_IMAGE", ".parts[0].image.data",
    ),
    "an SVG": (
        lambda p: image_of(SVG, "image/svg+xml"), "INVALID_IMAGE", ".parts[0].image.data",
    ),
    "a PNG that claims 60000x60000": (
        lambda p: image_of(png_claiming(60_000, 60_000)), "INVALID_IMAGE", ".parts[0].image.data",
    ),
    "a GIF that claims 60000x60000": (
        lambda p: image_of(gif_claiming(60_000, 60_000)), "INVALID_IMAGE", ".parts[0].image.data",
    ),
    "a PNG that claims 0x0": (
        lambda p: image_of(png_claiming(0, 0)), "INVALID_IMAGE", ".parts[0].image.data",
    ),
}  # fmt: skip

# What is wrong with the candidate -> candidate, reason, path of the field inside the candidate.
BAD_CANDIDATES: dict[str, tuple[Callable[..., candidate_pb2.Candidate], str, str]] = {
    name: (lambda p, make=make: candidate("bad", make(p)), reason, f"content{path}")
    for name, (make, reason, path) in BAD_CONTENT.items()
} | {
    "an empty id": (lambda p: candidate("", text_of("no id")), "INVALID_FIELD", "id"),
    "an id of 513 bytes": (
        lambda p: candidate("é" * 256 + "x", text_of("long id")), "INVALID_FIELD", "id",
    ),
    "an id with a line break": (
        lambda p: candidate("a\nb", text_of("odd id")), "INVALID_FIELD", "id",
    ),
    "an attribute without a value": (
        lambda p: with_attribute("year"), "INVALID_FIELD", "attributes['year']",
    ),
    "an attribute that is NaN": (
        lambda p: with_attribute("year", float_value=float("nan")),
        "INVALID_FIELD",
        "attributes['year']",
    ),
    "an attribute with a bad name": (
        lambda p: with_attribute("a\nb", integer_value=1), "INVALID_FIELD", "attributes",
    ),
    "an attribute over 4096 bytes": (
        lambda p: with_attribute("note", string_value="x" * 4097),
        "INVALID_FIELD",
        "attributes['note']",
    ),
}  # fmt: skip
bad_candidates = pytest.mark.parametrize(
    ("make", "reason", "field"), BAD_CANDIDATES.values(), ids=BAD_CANDIDATES.keys()
)


# -- upserts


async def upsert(
    stub, collection: str, *candidates: candidate_pb2.Candidate
) -> pb.UpsertCandidatesResponse:
    request = pb.UpsertCandidatesRequest(collection=collection, candidates=candidates)
    return await stub.UpsertCandidates(request, timeout=30)


@bad_candidates
async def test_an_upsert_with_a_bad_candidate_is_refused_whole(
    stub, index, collection, pictures, refusal, make, reason, field
):
    good = candidate("good", text_of("a good text"))
    refused = await refusal(upsert(stub, collection, good, make(pictures)))
    assert (refused.code, refused.reason, refused.domain) == (INVALID, reason, "mmesh")
    assert refused.fields == [f"candidates[1].{field}"]
    assert refused.retry_after_s is None
    assert index.stored == {}


def of_ids(*ids: str) -> list[candidate_pb2.Candidate]:
    return [candidate(one, text_of(f"{one} of place {n}")) for n, one in enumerate(ids)]


async def test_of_one_id_twice_in_an_upsert_the_last_is_stored_and_a_notice_says_so(
    stub, index, collection
):
    reply = await upsert(stub, collection, *of_ids("a", "b", "a", "c", "a"))
    said = [(one.number, one.id, one.reason) for one in reply.notices]
    assert said == [(0, "a", "ID_REPEATED"), (2, "a", "ID_REPEATED")]
    texts = {one.content.text for one in index.stored.values()}
    assert texts == {"b of place 1", "c of place 3", "a of place 4"}


async def test_an_upsert_whose_superseded_candidate_is_bad_is_refused_whole(
    stub, index, collection, refusal
):
    bad, good = candidate("a", text_of("x" * (MIB + 1))), candidate("a", text_of("good"))
    refused = await refusal(upsert(stub, collection, bad, good))
    assert refused.fields == ["candidates[0].content.parts[0].text"]
    assert index.stored == {}


@pytest.mark.parametrize("count", [0, 257])
async def test_an_upsert_takes_1_to_256_candidates(stub, index, collection, refusal, count):
    many = [candidate(f"id-{n}", text_of("word")) for n in range(count)]
    refused = await refusal(upsert(stub, collection, *many))
    assert (refused.code, refused.reason) == (INVALID, "INVALID_FIELD")
    assert refused.fields == ["candidates"]
    assert index.stored == {}


# -- ingests


async def ingest(
    stub, collection: str, *batches: list[candidate_pb2.Candidate]
) -> tuple[dict[tuple[int, str], pb.RejectedCandidate], list[pb.IngestAck]]:
    """Send batches in one stream; return what was refused by batch and id, and what was acked."""
    opening = pb.IngestOpen(collection=collection, ingest_id=uuid.uuid4().hex)
    messages = [pb.IngestRequest(open=opening)]
    for sequence, batch in enumerate(batches, start=1):
        step = pb.IngestBatch(sequence=sequence, candidates=batch)
        messages.append(pb.IngestRequest(batch=step))
    refused, acks = {}, []
    async for event in stub.Ingest(iter(messages), timeout=60):
        if event.WhichOneof("event") == "rejected":
            sequence = event.rejected.sequence
            refused |= {(sequence, one.id): one for one in event.rejected.candidates}
        elif event.WhichOneof("event") == "ack":
            acks.append(event.ack)
    return refused, acks


@bad_candidates
async def test_an_ingest_goes_on_without_a_bad_candidate(
    stub, index, collection, pictures, make, reason, field
):
    bad = make(pictures)
    before, after = candidate("before", text_of("before")), candidate("later", text_of("later"))
    refused, acks = await ingest(stub, collection, [before, bad], [after])
    assert list(refused) == [(1, bad.id)]
    problem = refused[1, bad.id].problem
    assert refused[1, bad.id].number == 1
    assert (problem.code, problem.reason) == (INVALID.value[0], reason)
    assert problem.metadata["field"].endswith(field)
    assert [(ack.through_sequence, ack.stored) for ack in acks] == [(1, 1), (2, 1)]
    assert list(index.stored) == ["before", "later"]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_ids_that_come_again_behave_alike_within_a_batch_and_across(
    stub, index, collection, size
):
    every = of_ids("a", "b", "a", "c", "a", "b")
    bad = candidate("c", text_of("x" * (MIB + 1)))  # one that is refused supersedes nothing
    every = [*every, bad]
    batches = [every[n : n + size] for n in range(0, len(every), size)]
    refused, acks = await ingest(stub, collection, *batches)
    assert [one.id for one in refused.values()] == ["c"]
    assert sum(ack.stored for ack in acks) == 6
    texts = {name: one.content.text for name, one in index.stored.items()}
    assert texts == {"a": "a of place 4", "b": "b of place 5", "c": "c of place 3"}


async def test_writes_say_what_the_model_did_not_read(stub, collection):
    texts = {"long": "too long", "odd": "all unknown", "good": "fine"}
    candidates = [candidate(name, text_of(text)) for name, text in texts.items()]
    reply = await upsert(stub, collection, *candidates)
    wanted = [(0, "long", "TEXT_TRUNCATED"), (1, "odd", "TEXT_UNKNOWN")]
    assert [(one.number, one.id, one.reason) for one in reply.notices] == wanted
    assert "256 tokens" in reply.notices[0].message
    opening = pb.IngestOpen(collection=collection, ingest_id=uuid.uuid4().hex)
    batch = pb.IngestBatch(sequence=1, candidates=candidates)
    messages = [pb.IngestRequest(open=opening), pb.IngestRequest(batch=batch)]
    events = [event async for event in stub.Ingest(iter(messages), timeout=60)]
    assert [event.WhichOneof("event") for event in events] == ["opened", "noticed", "ack"]
    assert list(events[1].noticed.notices) == list(reply.notices)


# -- searches


@pytest.mark.parametrize(("make", "reason", "path"), BAD_CONTENT.values(), ids=BAD_CONTENT.keys())
async def test_a_search_names_what_is_wrong_with_its_query(
    stub, collection, pictures, refusal, make, reason, path
):
    request = pb.SearchRequest(collection=collection, query=make(pictures))
    refused = await refusal(stub.Search(request, timeout=30))
    assert (refused.code, refused.reason) == (INVALID, reason)
    assert refused.fields == [f"query{path}"]


async def test_a_bad_search_of_a_batch_fails_alone(stub, index, collection):
    index.hold(text={"a": 0.9})
    queries = [text_of("good"), text_of(" "), image_of(b"no picture"), text_of("good")]
    searches = [pb.SearchRequest(collection=collection, query=query) for query in queries]
    reply = await stub.SearchBatch(pb.SearchBatchRequest(searches=searches), timeout=30)
    outcomes = [result.problem.reason or len(result.response.hits) for result in reply.results]
    assert outcomes == [1, "INVALID_FIELD", "INVALID_IMAGE", 1]
    fields = [result.problem.metadata["field"] for result in reply.results[1:3]]
    assert fields == ["query.parts[0].text", "query.parts[0].image.data"]


@pytest.mark.parametrize("count", [0, 257])
async def test_a_batch_takes_1_to_256_searches(stub, collection, refusal, count):
    searches = [pb.SearchRequest(collection=collection, query=text_of("word"))] * count
    refused = await refusal(stub.SearchBatch(pb.SearchBatchRequest(searches=searches)))
    assert (refused.code, refused.reason, refused.fields) == (
        INVALID,
        "INVALID_FIELD",
        ["searches"],
    )
