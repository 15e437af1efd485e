"""Bad input at the public API: refused by name, without harm to anything beside it.

Every test ends with a look at the same mesh: what was stored before is still found, and no service
has died. What the gateway refuses by itself is tested case by case on a gateway alone, in
tests/services/gateway/test_bad_content.py, test_bad_searches.py and test_ingest_protocol.py; here
are a few of each kind, and all that needs an encoder, an index or the SDK.
"""

from __future__ import annotations

import io
import os
import shutil
import statistics
import struct
import subprocess
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import PIL.Image
import pytest

from mmesh import Client, Content, Rerank, Search, wire
from mmesh.api.candidate.v1 import candidate_pb2
from mmesh.api.collection.v1 import collection_pb2
from mmesh.api.content.v1 import content_pb2
from mmesh.api.filter.v1 import filter_pb2
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.api.gateway.v1 import gateway_pb2_grpc as rpc
from mmesh.api.index.v1 import index_pb2, index_pb2_grpc
from mmesh.candidates import Candidate
from mmesh.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    HistoryLost,
    InvalidField,
    InvalidFilter,
    InvalidImage,
    MessageTooLarge,
    NotFound,
    StorageFull,
)
from mmesh.filter_language import parse_filter
from mmesh.search import Consistency

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
WITNESS = "a lighthouse on a cliff above the cold grey sea"
MIB = 1 << 20
SERVICE = "/mmesh.api.gateway.v1.RetrievalService/"


@pytest.fixture(scope="module")
def stub(mesh, open_channel) -> rpc.RetrievalServiceStub:
    return rpc.RetrievalServiceStub(open_channel(mesh.address))


@pytest.fixture(scope="module")
def shard(mesh, open_channel) -> index_pb2_grpc.IndexServiceStub:
    return index_pb2_grpc.IndexServiceStub(open_channel(mesh.address_of("index-0")))


@pytest.fixture(autouse=True)
def nothing_is_lost(mesh, client, collection) -> Iterator[None]:
    """Store a witness, and find it after whatever the test did; no service may have died."""
    token = client.upsert_candidates(collection, [Candidate("witness", Content.of(WITNESS))]).token
    restarts = mesh.restarts()
    yield
    found = client.search(collection, WITNESS, token=token, limit=5, require_all_shards=True)
    assert "witness" in [hit.id for hit in found.hits]
    assert not [one for one in found.degradations if one.reason != "CALIBRATION_MISSING"]
    assert mesh.restarts() == restarts


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


def upsert(stub, collection: str, *candidates: candidate_pb2.Candidate) -> str:
    request = pb.UpsertCandidatesRequest(collection=collection, candidates=candidates)
    return stub.UpsertCandidates(request, timeout=30).token


def ingest(
    stub, collection: str, *batches: list[candidate_pb2.Candidate], ingest_id: str = ""
) -> tuple[dict[tuple[int, str], pb.RejectedCandidate], list[pb.IngestAck]]:
    """Send batches in one stream; return what was refused by batch and id, and what was acked."""
    opening = pb.IngestOpen(collection=collection, ingest_id=ingest_id or uuid.uuid4().hex)
    messages = [pb.IngestRequest(open=opening)]
    for sequence, batch in enumerate(batches, start=1):
        step = pb.IngestBatch(sequence=sequence, candidates=batch)
        messages.append(pb.IngestRequest(batch=step))
    refused, acks = {}, []
    for event in stub.Ingest(iter(messages), timeout=60):
        if event.WhichOneof("event") == "rejected":
            sequence = event.rejected.sequence
            refused |= {(sequence, one.id): one for one in event.rejected.candidates}
        elif event.WhichOneof("event") == "ack":
            acks.append(event.ack)
    return refused, acks


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checked = kind + body
        return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(MIB), 9)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_of_many_scans(side: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("L", (64, 64)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last, frame = data.rindex(b"\xff\xda"), data.index(b"\xff\xc2")
    sides = struct.pack(">HH", side, side)
    many = data[last:-2] * 1500
    return data[: frame + 5] + sides + data[frame + 9 : -2] + many + data[-2:]


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9"/></svg>'

# What is wrong with the content -> content, reason, path of the field inside the content.
BAD_CONTENT: dict[str, tuple[Callable[..., content_pb2.Content], str, str]] = {
    "a blank text": (lambda p: text_of(" \n\t"), "INVALID_FIELD", ".parts[0].text"),
    "a truncated PNG": (
        lambda p: image_of(truncated(p.png())),
        "INVALID_IMAGE",
        ".parts[0].image.data",
    ),
    "an SVG": (
        lambda p: image_of(SVG, "image/svg+xml"),
        "INVALID_IMAGE",
        ".parts[0].image.data",
    ),
}

# What is wrong with the candidate -> candidate, reason, path of the field inside the candidate.
BAD_CANDIDATES: dict[str, tuple[Callable[..., candidate_pb2.Candidate], str, str]] = {
    name: (lambda p, make=make: candidate("bad", make(p)), reason, f"content{path}")
    for name, (make, reason, path) in BAD_CONTENT.items()
} | {
    "an attribute that is NaN": (
        lambda p: with_attribute("year", float_value=float("nan")),
        "INVALID_FIELD",
        "attributes['year']",
    ),
}
bad_candidates = pytest.mark.parametrize(
    ("make", "reason", "field"), BAD_CANDIDATES.values(), ids=BAD_CANDIDATES.keys()
)


# -- content


@bad_candidates
def test_an_upsert_with_a_bad_candidate_is_refused_whole(
    stub, client, collection, pictures, refusal, ids_in, make, reason, field
):
    good = candidate("good", text_of("a good text"))
    refused = refusal(lambda: upsert(stub, collection, good, make(pictures)))
    assert (refused.code, refused.reason, refused.domain) == (INVALID, reason, "mmesh")
    assert refused.fields == [f"candidates[1].{field}"]
    assert refused.retry_after_s is None
    assert ids_in(client, collection) == ["witness"]


@bad_candidates
def test_an_ingest_goes_on_without_a_bad_candidate(
    stub, client, collection, pictures, ids_in, make, reason, field
):
    bad = make(pictures)
    before, after = candidate("before", text_of("before")), candidate("later", text_of("later"))
    refused, acks = ingest(stub, collection, [before, bad], [after])
    assert list(refused) == [(1, bad.id)]
    problem = refused[1, bad.id].problem
    assert refused[1, bad.id].number == 1
    assert (problem.code, problem.reason) == (INVALID.value[0], reason)
    assert problem.metadata["field"].endswith(field)
    assert [(ack.through_sequence, ack.stored) for ack in acks] == [(1, 1), (2, 1)]
    assert ids_in(client, collection) == ["before", "later", "witness"]


@pytest.mark.parametrize(("make", "reason", "path"), BAD_CONTENT.values(), ids=BAD_CONTENT.keys())
def test_a_search_names_what_is_wrong_with_its_query(
    stub, collection, pictures, refusal, make, reason, path
):
    request = pb.SearchRequest(collection=collection, query=make(pictures))
    refused = refusal(lambda: stub.Search(request, timeout=30))
    assert (refused.code, refused.reason) == (INVALID, reason)
    assert refused.fields == [f"query{path}"]


def test_a_bad_search_of_a_batch_fails_alone(client, collection):
    queries = (WITNESS, " ", b"no picture", WITNESS)
    answers = client.search_batch([Search(collection, Content.of(query)) for query in queries])
    assert [type(answer).__name__ for answer in answers] == [
        "SearchResult",
        "InvalidField",
        "InvalidImage",
        "SearchResult",
    ]
    assert [answers[1].field, answers[2].field] == [
        "query.parts[0].text",
        "query.parts[0].image.data",
    ]


GOOD_PICTURES = {
    "an animated GIF": lambda p: p.gif(1, 2, 3),
    "a picture of 1x1": lambda p: p.one_pixel(),
    "a 16-bit PNG": lambda p: p.png16(4),
    "a CMYK JPEG": lambda p: p.jpeg(5, mode="CMYK"),
    "a JPEG with broken EXIF": lambda p: p.jpeg(6, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff junk"),
}


@pytest.mark.parametrize("make", GOOD_PICTURES.values(), ids=GOOD_PICTURES.keys())
def test_an_unusual_picture_is_taken_and_found_by_itself(client, collection, pictures, make):
    data = make(pictures)
    others = [Candidate(f"other-{n}", Content.of(pictures.png(n + 50))) for n in range(5)]
    report = client.ingest(collection, [Candidate("odd", Content.of(data)), *others])
    assert (report.stored, report.rejected) == (6, ())
    found = client.search(collection, data, token=report.token, limit=1)
    assert found.hits[0].id == "odd"
    assert found.hits[0].retrieval_score == pytest.approx(1.0, abs=1e-3)
    (back,) = client.batch_get_candidates(collection, ["odd"])
    assert back.content.images[0].data == data


def test_an_animation_is_its_first_frame(client, collection, pictures):
    token = client.upsert_candidates(
        collection, [Candidate("animation", Content.of(pictures.gif(1, 2, 3)))]
    ).token
    first, second = (
        client.search(collection, pictures.gif(seed), token=token, limit=1).hits[0]
        for seed in (1, 2)
    )
    assert first.retrieval_score > 0.98 > second.retrieval_score


def memory_peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


@pytest.mark.parametrize(
    "bomb", [png_claiming(60_000, 60_000), jpeg_of_many_scans(7000)], ids=["pixels", "scans"]
)
def test_a_decompression_bomb_costs_the_encoder_neither_memory_nor_time(
    mesh, client, collection, pictures, bomb
):
    def seconds_of(number: int, data: bytes) -> float:
        start = time.perf_counter()
        report = client.ingest(collection, [Candidate(f"image-{number}", Content.of(data))])
        took = time.perf_counter() - start
        assert report.stored + len(report.rejected) == 1
        return took

    usual = statistics.median(seconds_of(n, pictures.png(n + 200)) for n in range(5))
    before = memory_peak_mb(mesh.pid("encoder"))
    bombs = statistics.median(seconds_of(n, bomb + bytes([n])) for n in range(5))
    assert memory_peak_mb(mesh.pid("encoder")) - before < 200
    assert bombs < 3 * usual


# -- text


def test_a_text_of_1_mb_is_taken_and_a_query_of_it_is_said_to_be_cut(client, collection):
    text = "a long story about a harbour and its ships " * (1_000_000 // 43)
    token = client.upsert_candidates(collection, [Candidate("long", Content.of(text))]).token
    found = client.search(collection, text, token=token, limit=1)
    assert found.hits[0].id == "long"
    assert "TEXT_TRUNCATED" in [one.reason for one in found.degradations]
    (back,) = client.batch_get_candidates(collection, ["long"])
    assert back.content.text == text
    short = client.search(collection, "a short story", token=token)
    assert "TEXT_TRUNCATED" not in [one.reason for one in short.degradations]


def test_an_ingest_says_which_texts_the_model_did_not_read(client, collection):
    texts = [("long", "a long story " * 300), ("a", "🚗"), ("b", "🚀"), ("c", "a car 🚗")]
    candidates = [Candidate(name, Content.of(text)) for name, text in texts]
    report = client.ingest(collection, candidates)
    assert report.stored == 4
    said = {one.reason: (one.count, one.ids) for one in report.notices}
    assert said == {"TEXT_TRUNCATED": (1, ("long",)), "TEXT_UNKNOWN": (2, ("a", "b"))}
    found = client.search(collection, "🚲", token=report.token)
    assert "TEXT_UNKNOWN" in [one.reason for one in found.degradations]


def test_an_upsert_says_what_an_ingest_would(client, collection):
    texts = [("long", "a long story " * 300), ("a", "🚗"), ("b", "first"), ("b", "last")]
    report = client.upsert_candidates(collection, [Candidate(i, Content.of(t)) for i, t in texts])
    said = {one.reason: (one.count, one.ids) for one in report.notices}
    wanted = {"TEXT_TRUNCATED": (1, ("long",)), "TEXT_UNKNOWN": (1, ("a",))}
    assert said == wanted | {"ID_REPEATED": (1, ("b",))}
    assert (report.stored, report.rejected, report.duplicates) == (4, (), 1)
    found = client.search(collection, "last", token=report.token, include_content=True)
    assert "last" in [hit.content.text for hit in found.hits]
    assert "first" not in [hit.content.text for hit in found.hits]


def test_ids_that_come_again_behave_alike_within_a_batch_and_across(client, new_collection):
    ids = ["a", "b", "a", "c", "a", "b"]
    candidates = [Candidate(one, Content.of(f"{one} of place {n}")) for n, one in enumerate(ids)]
    for size in (1, 2, 64):
        with new_collection(client) as name:
            report = client.ingest(name, candidates, batch_size=size)
            assert (report.stored, report.rejected, report.duplicates) == (6, (), 3)
            found = client.batch_get_candidates(name, ["a", "b", "c"])
            texts = [one.content.text for one in found]
            assert texts == ["a of place 4", "b of place 5", "c of place 3"]


@pytest.mark.parametrize(
    "special", ["[CLS]", "[SEP]", "[PAD]", "[MASK]", "<|im_end|>", "<|image_pad|>", "</s>"]
)
def test_the_special_tokens_of_models_are_just_text(client, collection, special):
    texts = {
        "plain": "the ship leaves the harbour",
        "odd": f"the ship {special} leaves the harbour",
        "bare": special,
        "other": "a bakery sells bread in the morning",
    }
    report = client.ingest(collection, [Candidate(i, Content.of(t)) for i, t in texts.items()])
    assert (report.stored, report.rejected) == (4, ())
    for candidate_id, text in texts.items():
        hits = client.search(collection, text, token=report.token, limit=10).hits
        assert hits[0].id == candidate_id
        assert hits[0].retrieval_score == pytest.approx(1.0, abs=1e-3)
    from_odd = client.search(collection, texts["odd"], token=report.token, rerank=Rerank(0))
    assert [hit.id for hit in from_odd.hits][:2] == ["odd", "plain"]


SURROGATE = "half of a pair: \ud800"


def test_the_sdk_refuses_a_lone_surrogate_in_a_query(client, collection):
    with pytest.raises(InvalidField) as refused:
        client.search(collection, SURROGATE)
    assert refused.value.field == "query.parts[0].text"


def test_the_sdk_refuses_a_lone_surrogate_in_an_upsert(client, collection):
    with pytest.raises(InvalidField) as refused:
        client.upsert_candidates(collection, [Candidate("bad", Content.of(SURROGATE))])
    assert refused.value.field == "candidates[0].content.parts[0].text"


@pytest.mark.parametrize(
    "bad",
    [
        Candidate("bad", Content.of(SURROGATE)),
        Candidate("bad\ud800", Content.of("a text")),
        Candidate("bad", Content.of("a text"), {"note": SURROGATE}),
        Candidate("bad", Content.of("a text"), {"tags": ("fine", SURROGATE)}),
        Candidate("bad", Content.of("a text"), {"number": 1 << 63}),
        Candidate("bad", Content.of("a text"), {"none": None}),
        Candidate("bad", Content(())),
    ],
    ids=["text", "id", "attribute", "attribute list", "integer over 64 bits", "None", "no parts"],
)
@pytest.mark.timeout(15)
def test_an_ingest_of_the_sdk_goes_on_without_what_cannot_be_sent(client, collection, ids_in, bad):
    good = [Candidate(name, Content.of(name)) for name in ("before", "later")]
    report = client.ingest(collection, [good[0], bad, good[1]])
    assert report.stored == 2
    ((candidate_id, error),) = [(one.id, one.error) for one in report.rejected]
    assert candidate_id == bad.id
    assert isinstance(error, InvalidField)
    assert ids_in(client, collection) == ["before", "later", "witness"]


def test_bytes_that_are_not_utf8_are_an_invalid_argument(mesh, open_channel, refusal):
    message = pb.SearchRequest(collection="c", query=text_of("SPOIL")).SerializeToString()
    call = open_channel(mesh.address).unary_unary(SERVICE + "Search")
    refused = refusal(lambda: call(message.replace(b"SPO", b"\xff\xfe\xfd", 1), timeout=10))
    assert (refused.code, refused.reason) == (INVALID, "INVALID_REQUEST")


@pytest.mark.timeout(15)
def test_an_ingest_whose_source_fails_raises_that_and_keeps_what_came_before(
    client, collection, ids_in, new_candidates
):
    def failing() -> Iterator[Candidate]:
        yield from new_candidates(30)
        raise OSError("the disk with the pictures is gone")

    with pytest.raises(OSError, match="the disk with the pictures is gone"):
        client.ingest(collection, failing(), batch_size=10)
    assert set(ids_in(client, collection)) <= {one.id for one in new_candidates(30)} | {"witness"}


# -- ids and batches


def test_an_attribute_of_another_type_is_refused_and_what_is_good_beside_it_stored(
    stub, client, collection, pictures, ids_in
):
    """Also when the encoder has refused a picture of the same batch before the index looks."""
    typed, other = (
        with_attribute("year", integer_value=1969),
        with_attribute("year", string_value="x"),
    )
    typed.id, other.id = "typed", "other"
    picture = candidate("picture", image_of(truncated(pictures.png())))
    good = [candidate(f"good-{n}", text_of(f"good text {n}")) for n in range(3)]
    refused, acks = ingest(stub, collection, [typed], [picture, *good, other])
    reasons = {candidate_id: one.problem.reason for (_, candidate_id), one in refused.items()}
    assert reasons == {"picture": "INVALID_IMAGE", "other": "INVALID_FIELD"}
    assert [ack.stored for ack in acks] == [1, 3]
    assert ids_in(client, collection) == ["good-0", "good-1", "good-2", "typed", "witness"]


def test_a_batch_sent_again_gets_the_same_answer_refusals_included(stub, collection):
    """After a broken stream the client knows what was refused only from the second answer."""
    typed = with_attribute("year", integer_value=1)
    other = with_attribute("year", string_value="x")
    typed.id, other.id = "typed", "other"
    batches = ([typed], [other, candidate("good", text_of("a good text"))])
    first, second = (ingest(stub, collection, *batches, ingest_id="the same") for _ in range(2))
    assert list(first[0]) == [(2, "other")]
    assert list(second[0]) == [(2, "other")]
    assert [ack.stored for ack in first[1]] == [ack.stored for ack in second[1]] == [1, 1]


def test_sequences_of_an_ingest_rise_by_one(stub, collection, refusal):
    opening = pb.IngestOpen(collection=collection, ingest_id=uuid.uuid4().hex)
    messages = [pb.IngestRequest(open=opening)]
    for n in (1, 3):
        batch = pb.IngestBatch(sequence=n, candidates=[candidate(f"n{n}", text_of("word"))])
        messages.append(pb.IngestRequest(batch=batch))
    refused = refusal(lambda: list(stub.Ingest(iter(messages), timeout=10)))
    assert (refused.code, refused.reason) == (INVALID, "INVALID_FIELD")
    assert refused.fields == ["batch.sequence"]


# -- collections


UNKNOWN = "no-such-collection"
UNKNOWN_CALLS = {
    "search": lambda client: client.search(UNKNOWN, "words"),
    "upsert": lambda client: client.upsert_candidates(UNKNOWN, [Candidate("a", Content.of("b"))]),
    "ingest": lambda client: client.ingest(UNKNOWN, [Candidate("a", Content.of("b"))]),
    "delete candidates": lambda client: client.delete_candidates(UNKNOWN, ["a"]),
    "get candidates": lambda client: client.batch_get_candidates(UNKNOWN, ["a"]),
    "list candidates": lambda client: client.list_candidates(UNKNOWN),
    "show": lambda client: client.get_collection(UNKNOWN),
    "delete": lambda client: client.delete_collection(UNKNOWN),
}


@pytest.mark.parametrize("call", UNKNOWN_CALLS.values(), ids=UNKNOWN_CALLS.keys())
def test_an_unknown_collection_is_not_found(client, call):
    with pytest.raises(CollectionNotFound) as refused:
        call(client)
    assert refused.value.metadata == {"collection": UNKNOWN}


@pytest.mark.parametrize("name", ["", "Photos", "a" * 64, "-a", "a/b", "ä"], ids=repr)
def test_a_collection_needs_a_proper_name(stub, refusal, name):
    refused = refusal(lambda: stub.CreateCollection(pb.CreateCollectionRequest(name=name)))
    assert (refused.code, refused.reason, refused.fields) == (INVALID, "INVALID_FIELD", ["name"])


def test_a_very_long_name_of_a_collection_is_not_found_like_any_other(client):
    with pytest.raises(NotFound):
        client.search("x" * 100_000, "words")


# -- vectors


def vectors_for(stub, collection: str, rows: np.ndarray) -> index_pb2.UpsertCandidatesRequest:
    found = stub.GetCollection(pb.GetCollectionRequest(name=collection)).collection
    return index_pb2.UpsertCandidatesRequest(
        collection=collection,
        candidates=[candidate(f"row-{n}", text_of(f"row {n}")) for n in range(len(rows))],
        vectors=wire.vectors_to_pb(rows),
        model_fingerprint=found.model_fingerprint,
    )


def rows_of(stub, collection: str, width: int = 0) -> np.ndarray:
    found = stub.GetCollection(pb.GetCollectionRequest(name=collection)).collection
    return np.random.default_rng(0).normal(size=(3, width or found.dim)).astype(np.float32)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0], ids=["NaN", "inf", "-inf", "0"])
def test_a_vector_without_direction_is_refused(
    stub, shard, client, collection, refusal, ids_in, value
):
    rows = rows_of(stub, collection)
    rows[1, :] = value
    request = vectors_for(stub, collection, rows)
    refused = refusal(lambda: shard.UpsertCandidates(request, timeout=10))
    assert (refused.code, refused.reason) == (INVALID, "INVALID_VECTOR")
    assert refused.fields == ["vectors[1]"]
    assert ids_in(client, collection) == ["witness"]


def test_vectors_of_another_width_are_refused(stub, shard, client, collection, refusal, ids_in):
    request = vectors_for(stub, collection, rows_of(stub, collection, width=7))
    refused = refusal(lambda: shard.UpsertCandidates(request, timeout=10))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "DIM_MISMATCH"
    assert ids_in(client, collection) == ["witness"]


def test_bytes_that_are_no_whole_rows_are_refused(stub, shard, collection, refusal):
    request = vectors_for(stub, collection, rows_of(stub, collection))
    request.vectors.values = request.vectors.values[:-1]
    refused = refusal(lambda: shard.UpsertCandidates(request, timeout=10))
    assert (refused.code, refused.reason) == (INVALID, "INVALID_VECTOR")
    assert refused.fields == ["vectors.values"]


def test_fewer_vectors_than_candidates_are_refused(stub, shard, collection, refusal):
    request = vectors_for(stub, collection, rows_of(stub, collection))
    request.candidates.add().CopyFrom(candidate("one more", text_of("one more")))
    refused = refusal(lambda: shard.UpsertCandidates(request, timeout=10))
    assert (refused.code, refused.reason) == (INVALID, "INVALID_FIELD")
    assert refused.fields == ["vectors"]


def test_vectors_of_another_model_are_refused(stub, shard, client, collection, refusal, ids_in):
    request = vectors_for(stub, collection, rows_of(stub, collection))
    request.model_fingerprint = "another model"
    refused = refusal(lambda: shard.UpsertCandidates(request, timeout=10))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "MODEL_MISMATCH"
    assert ids_in(client, collection) == ["witness"]


def test_a_shard_refuses_a_query_vector_without_direction(stub, shard, collection, refusal):
    rows = rows_of(stub, collection)
    rows[2] = np.nan
    queries = wire.vectors_to_pb(rows)
    request = index_pb2.SearchRequest(collection=collection, queries=queries, limit=3)
    refused = refusal(lambda: shard.Search(request, timeout=10))
    assert (refused.code, refused.reason) == (INVALID, "INVALID_VECTOR")
    assert refused.fields == ["queries[2]"]


# -- numbers and filters


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"limit": 1001}, "limit"),
        ({"rerank": pb.RerankOptions(candidates=257)}, "rerank.candidates"),
        ({"instruction": "a\0b"}, "instruction"),
        ({"token": "nonsense"}, "token"),
        ({"consistency": collection_pb2.CONSISTENCY_SESSION}, "token"),
    ],
    ids=["limit", "rerank 257", "NUL in the instruction", "token", "session without token"],
)
def test_an_option_out_of_its_limits_is_refused(stub, collection, refusal, options, field):
    request = pb.SearchRequest(collection=collection, query=text_of("word"), **options)
    refused = refusal(lambda: stub.Search(request, timeout=10))
    assert (refused.code, refused.reason, refused.fields) == (INVALID, "INVALID_FIELD", [field])


@pytest.mark.parametrize("number", ["²", "9" * 5000], ids=["superscript", "5000 digits"])
def test_a_token_whose_number_is_none_is_refused(stub, client, collection, refusal, number):
    epoch = client.get_collection(collection).token.partition(":")[0]
    token = f"{epoch}:{number}"
    request = pb.SearchRequest(collection=collection, query=text_of("word"), token=token)
    refused = refusal(lambda: stub.Search(request, timeout=10))
    assert (refused.code, refused.reason, refused.fields) == (INVALID, "INVALID_FIELD", ["token"])


def test_a_token_of_a_write_that_the_log_does_not_have_is_refused_by_name(client, collection):
    epoch, _, seq = client.get_collection(collection).token.partition(":")
    with pytest.raises(HistoryLost, match="Search without the token") as refused:
        client.search(collection, "words", token=f"{epoch}:{int(seq) + 1000}", timeout=10)
    assert refused.value.retry_after_s is None


@pytest.mark.parametrize("size", [-1, -(2**31)])
def test_a_negative_page_is_refused(stub, collection, refusal, size):
    request = pb.ListCandidatesRequest(collection=collection, page_size=size)
    refused = refusal(lambda: stub.ListCandidates(request, timeout=10))
    assert (refused.code, refused.fields) == (INVALID, ["page_size"])


def membership(values: int) -> filter_pb2.Filter:
    members = [filter_pb2.AttributeValue(integer_value=number) for number in range(values)]
    return filter_pb2.Filter(**{"in": filter_pb2.Membership(attribute="year", values=members)})


def any_of(*filters: filter_pb2.Filter) -> filter_pb2.Filter:
    return filter_pb2.Filter(any_of=filter_pb2.FilterList(filters=filters))


def compare(operator: int, **value: object) -> filter_pb2.Filter:
    wanted = filter_pb2.AttributeValue(**value)
    compared = filter_pb2.Compare(attribute="year", operator=operator, value=wanted)
    return filter_pb2.Filter(compare=compared)


BAD_FILTERS = {
    "no operator": (lambda: compare(0, integer_value=1), "filter.compare.operator"),
    "a string for a number": (
        lambda: compare(filter_pb2.OPERATOR_LESS, string_value="x"),
        "filter",
    ),
    "an empty set": (
        lambda: filter_pb2.Filter(**{"in": filter_pb2.Membership(attribute="year")}),
        "filter",
    ),
    "too many values in all": (lambda: any_of(*[membership(4096)] * 255), "filter"),
}


@pytest.mark.parametrize(("make", "field"), BAD_FILTERS.values(), ids=BAD_FILTERS.keys())
def test_a_filter_that_makes_no_sense_is_refused(stub, collection, refusal, make, field):
    typed = with_attribute("year", integer_value=1969)
    upsert(stub, collection, typed)
    request = pb.SearchRequest(collection=collection, query=text_of("word"), filter=make())
    request.consistency = collection_pb2.CONSISTENCY_STRONG  # so that the shards know the type
    refused = refusal(lambda: stub.Search(request, timeout=10))
    assert (refused.code, refused.reason) == (INVALID, "INVALID_FILTER")
    assert refused.fields == [field]


def test_a_filter_as_text_says_where_it_is_wrong():
    for expression in ("year >>> 3", "year =", "(" * 1000, "year == __import__('os')", ""):
        with pytest.raises(InvalidFilter):
            parse_filter(expression)


# -- size, time and going away


def test_a_message_over_the_limit_is_refused_and_the_sdk_says_why(
    stub, client, collection, refusal, ids_in
):
    parts = [bytes([n]) + bytes(17 * MIB) for n in range(4)]
    large = Candidate("large", Content.of(*parts))
    refused = refusal(lambda: upsert(stub, collection, wire.candidate_to_pb(large)))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(MessageTooLarge) as error:
        client.upsert_candidates(collection, [large])
    assert error.value.reason == "MESSAGE_TOO_LARGE"
    assert ids_in(client, collection) == ["witness"]


def test_an_ingest_goes_on_without_a_candidate_that_fits_into_no_message(
    client, collection, ids_in
):
    parts = [bytes([n]) + bytes(17 * MIB) for n in range(4)]
    candidates = [
        Candidate("before", Content.of("before")),
        Candidate("large", Content.of(*parts)),
        Candidate("later", Content.of("later")),
    ]
    report = client.ingest(collection, candidates, patience_s=3)
    assert report.stored == 2
    assert [one.id for one in report.rejected] == ["large"]
    assert ids_in(client, collection) == ["before", "later", "witness"]


def test_a_deadline_of_a_millisecond_passes(client, collection):
    with pytest.raises(DeadlineExceeded) as error:
        client.search(collection, "words that no cache knows", timeout=0.001)
    assert error.value.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


def test_a_search_cancelled_half_way_leaves_the_mesh_well(stub, collection):
    text = "a text that takes a moment " * 2000
    cancelled = 0
    for n in range(10):
        request = pb.SearchRequest(collection=collection, query=text_of(f"{n} {text}"))
        call = stub.Search.future(request, timeout=30)
        time.sleep(0.002 * n)
        call.cancel()  # unless it has ended, while nobody was given time to cancel it
        cancelled += call.cancelled()
        assert call.done()
    assert cancelled
    request = pb.SearchRequest(collection=collection, query=text_of("the next call"))
    assert stub.Search(request, timeout=10).coverage.shards_answered == 2


@pytest.mark.parametrize("pause_s", [0.0, 0.05, 0.2])
def test_an_upsert_cancelled_half_way_stores_all_or_nothing(
    stub, client, collection, eventually, ids_in, new_candidates, pause_s
):
    candidates = [wire.candidate_to_pb(one) for one in new_candidates(200)]
    request = pb.UpsertCandidatesRequest(collection=collection, candidates=candidates)
    call = stub.UpsertCandidates.future(request, timeout=30)
    time.sleep(pause_s)
    call.cancel()
    assert len(ids_in(client, collection, 1000)) in (1, 201)
    upsert(stub, collection, *candidates)
    assert len(ids_in(client, collection, 1000)) == 201


def test_an_ingest_cancelled_half_way_keeps_what_it_acknowledged(
    stub, client, collection, ids_in, new_candidates
):
    everything = [wire.candidate_to_pb(one) for one in new_candidates(160)]
    batches = [everything[n : n + 8] for n in range(0, 160, 8)]

    def messages() -> Iterator[pb.IngestRequest]:
        opening = pb.IngestOpen(collection=collection, ingest_id=uuid.uuid4().hex)
        yield pb.IngestRequest(open=opening)
        for sequence, batch in enumerate(batches, start=1):
            step = pb.IngestBatch(sequence=sequence, candidates=batch)
            yield pb.IngestRequest(batch=step)

    call = stub.Ingest(messages(), timeout=30)
    acked = 0
    for event in call:
        acked = max(acked, event.ack.through_sequence)
        if acked >= 2:
            break
    call.cancel()
    stored = set(ids_in(client, collection, 1000)) - {"witness"}
    assert {one.id for batch in batches[:acked] for one in batch} <= stored
    found = client.search(collection, WITNESS, consistency=Consistency.STRONG, limit=1)
    assert found.hits[0].id == "witness"


def test_a_candidate_of_the_wrong_kind_never_reaches_the_log(client, collection):
    with pytest.raises(InvalidImage) as refused:
        client.upsert_candidates(collection, [Candidate("bad", Content.of(b"no picture"))])
    assert refused.value.field == "candidates[0].content.parts[0].image.data"
    assert client.get_collection(collection).token.endswith(":1")


# -- a full disk


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 24 MB; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "mmesh-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path, leave: int) -> None:
    """Take all space of a disk but `leave` bytes."""
    free = shutil.disk_usage(path.parent).free
    with path.open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, free - leave)


def test_a_full_disk_refuses_writes_and_loses_nothing_that_was_acknowledged(
    small_disk, start_mesh, open_channel, pictures, refusal, new_collection, ids_in
):
    mesh = start_mesh(small_disk / "data", reranker="none")
    stub = rpc.RetrievalServiceStub(open_channel(mesh.address))
    with Client(mesh.address) as client, new_collection(client) as name:
        everything = [
            candidate(f"image-{n:03}", image_of(pictures.png(n, size=64))) for n in range(192)
        ]
        batches = [everything[n : n + 8] for n in range(0, 192, 8)]
        acks: list[pb.IngestAck] = []

        def ingest_from(first: int) -> None:
            opening = pb.IngestOpen(collection=name, ingest_id="full disk")
            messages = [pb.IngestRequest(open=opening)]
            for n, batch in enumerate(batches[first:], start=first + 1):
                step = pb.IngestBatch(sequence=n, candidates=batch)
                messages.append(pb.IngestRequest(batch=step))
            events = stub.Ingest(iter(messages), timeout=60)
            acks.extend(event.ack for event in events if event.WhichOneof("event") == "ack")

        first_batch = pb.UpsertCandidatesRequest(collection=name, candidates=batches[0])
        stub.UpsertCandidates(first_batch, timeout=30)
        fill(small_disk / "ballast", leave=MIB)
        refused = refusal(lambda: ingest_from(0))
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.reason == "STORAGE_FULL"
        assert refused.retry_after_s == 30.0
        with pytest.raises(StorageFull):
            client.upsert_candidates(name, [Candidate("large", Content.of(pictures.png(7, 900)))])
        with pytest.raises(StorageFull):
            client.ingest(
                name, [Candidate("large", Content.of(pictures.png(8, 900)))], patience_s=0.5
            )

        acknowledged = [one.id for batch in batches[: len(acks)] for one in batch]
        assert 0 < len(acknowledged) < len(everything)
        kept = client.batch_get_candidates(name, acknowledged)
        assert [one.id for one in kept] == acknowledged
        for one in kept[:: len(kept) // 8 or 1]:
            found = client.search(name, one.content, limit=1, consistency=Consistency.STRONG)
            assert found.hits[0].id == one.id

        (small_disk / "ballast").unlink()
        ingest_from(len(acks))
        assert ids_in(client, name) == [one.id for one in everything]
        last = image_of(pictures.png(191, size=64))
        found = client.search(name, wire.content_from_pb(last), consistency=Consistency.STRONG)
        assert found.hits[0].id == "image-191"
        assert set(mesh.restarts().values()) == {0}
    mesh.close()
