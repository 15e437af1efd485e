"""Filters seen in the bytes of requests."""

import pytest

from mmesh import wire
from mmesh.api.candidate.v1 import candidate_pb2
from mmesh.api.content.v1 import content_pb2
from mmesh.api.encoder.v1 import encoder_pb2
from mmesh.api.filter.v1 import filter_pb2
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.api.reranker.v1 import reranker_pb2
from mmesh.candidates import MAX_ATTRIBUTES, MAX_LIST, MAX_VALUES, Candidate
from mmesh.content import MAX_PARTS, Content
from mmesh.errors import InvalidField, InvalidFilter, InvalidRequest
from mmesh.filters import AnyOf, In
from mmesh.ingest import Ingest
from mmesh.wire import oversize
from mmesh.wire.oversize import (
    FILTERS,
    MANY,
    MAX_FIELDS,
    MAX_MESSAGE_BYTES,
    check_filters,
    check_values,
)
from mmesh.wire.search import search_from_pb

GATEWAY = "/mmesh.api.gateway.v1.RetrievalService"
SEARCH, BATCH = FILTERS[f"{GATEWAY}/Search"], FILTERS[f"{GATEWAY}/SearchBatch"]
LARGEST = In("a", tuple("x" * 127 for _ in range(4096)))
TOO_LARGE = AnyOf((LARGEST, LARGEST))


def search(condition, picture=b"") -> pb.SearchRequest:
    parts = [picture, "word"] if picture else ["word"]
    return pb.SearchRequest(
        collection="c",
        query=wire.content_to_pb(Content.of(*parts)),
        filter=wire.filter_to_pb(condition),
        limit=10,
        token="t",
    )


def test_a_filter_is_found_behind_a_large_picture():
    picture = b"x" * MAX_MESSAGE_BYTES
    check_filters(search(LARGEST, picture).SerializeToString(), SEARCH)
    with pytest.raises(InvalidFilter, match="too large"):
        check_filters(search(TOO_LARGE, picture).SerializeToString(), SEARCH)


def test_each_filter_of_a_batch_is_looked_at_and_all_together():
    good = search(LARGEST)
    few = pb.SearchBatchRequest(searches=[good] * 8)
    check_filters(few.SerializeToString(), BATCH)
    for searches in ([good, search(TOO_LARGE)], [good] * 20):
        data = pb.SearchBatchRequest(searches=searches).SerializeToString()
        with pytest.raises(InvalidFilter, match="too large"):
            check_filters(data, BATCH)


def test_a_filter_is_not_hidden_behind_many_fields():
    hidden = b"\x28\x0a" * MAX_FIELDS + search(TOO_LARGE).SerializeToString()
    with pytest.raises(InvalidRequest, match="fields"):
        check_filters(hidden, SEARCH)


@pytest.mark.parametrize("start", [b"\xff" * 12, b"\x07", b"\x32\xff\xff\xff\x7f"])
def test_what_is_no_protobuf_is_left_to_the_parser(start):
    path = (63,)
    check_filters(start + bytes(2 * MAX_MESSAGE_BYTES), path)


@pytest.mark.parametrize("group", [b"\xa3\x06\xa4\x06", b"\x0b", b"\x0c"])
def test_a_filter_is_not_hidden_behind_a_group(group):
    """A parser skips groups that it does not know, and reads what follows."""
    with pytest.raises(InvalidRequest, match="group"):
        check_filters(group + search(TOO_LARGE).SerializeToString(), SEARCH)


def parts(count: int) -> content_pb2.Content:
    return content_pb2.Content(parts=[content_pb2.Part(text="")] * count)


def upsert(lists: int, strings: int) -> pb.UpsertCandidatesRequest:
    value = filter_pb2.AttributeValue(string_list_value={"values": ["some words"] * strings})
    attributes = {f"a{number}": value for number in range(lists)}
    return pb.UpsertCandidatesRequest(
        candidates=[candidate_pb2.Candidate(id="x", attributes=attributes)]
    )


MANY_PARTS = parts(MAX_MESSAGE_BYTES)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        (f"{GATEWAY}/Search", pb.SearchRequest(query=MANY_PARTS)),
        (f"{GATEWAY}/SearchBatch", pb.SearchBatchRequest(searches=[{"query": MANY_PARTS}])),
        (
            f"{GATEWAY}/UpsertCandidates",
            pb.UpsertCandidatesRequest(candidates=[{"content": MANY_PARTS}]),
        ),
        (f"{GATEWAY}/UpsertCandidates", upsert(400, 256)),
        (
            "/mmesh.api.encoder.v1.EncoderService/Encode",
            encoder_pb2.EncodeRequest(inputs=[{"content": MANY_PARTS}]),
        ),
        (
            "/mmesh.api.reranker.v1.RerankerService/Rerank",
            reranker_pb2.RerankRequest(candidates=[MANY_PARTS]),
        ),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_many_tiny_parts_are_not_parsed(method, request_):
    with pytest.raises(InvalidRequest, match="fewer things at a time"):
        check_values(request_.SerializeToString(), MANY[method])


def test_what_is_within_the_limits_is_parsed():
    check_values(upsert(64, 256).SerializeToString(), MANY[f"{GATEWAY}/UpsertCandidates"])
    assert MAX_VALUES > 64 * 256 * 3


LISTS = {f"list {n}": tuple(f"tag {i}" for i in range(MAX_LIST)) for n in range(MAX_ATTRIBUTES)}
FULLEST = Candidate("fullest", Content.of(*["word"] * MAX_PARTS), LISTS)
CANDIDATES = [
    Candidate("plain", Content.of("words")),
    Candidate("mixed", Content.of("words", b"bytes"), {"year": 5, "tags": ("a", "b"), "none": ()}),
    FULLEST,
]


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda one: one.id)
def test_candidates_know_for_how_many_values_they_count(candidate):
    messages = [wire.candidate_to_pb(candidate)] * 3
    data = pb.IngestRequest(batch=pb.IngestBatch(candidates=messages)).SerializeToString()
    steps = iter(range(1 << 20))
    oversize._walk(data, 0, len(data), MANY[f"{GATEWAY}/Ingest"], steps)
    assert next(steps) == 3 * wire.value_count(candidate) + 1  # that of the batch


async def test_an_ingest_packs_no_more_values_into_a_batch_than_are_taken():
    async def source():
        for number in range(8):
            yield Candidate(f"n{number}", FULLEST.content, LISTS)

    ingest = Ingest(None, "c", source(), 64, 1.0)  # no stub is used
    batches = []
    while (batch := await ingest._next_batch()) is not None:
        check_values(batch.message.SerializeToString(), MANY[f"{GATEWAY}/Ingest"])
        batches.append(len(batch.numbers))
    assert sum(batches) == 8


@pytest.mark.parametrize(
    ("read", "field"),
    [
        (lambda: wire.content_from_pb(parts(17), "query"), "query.parts"),
        (lambda: search_from_pb(pb.SearchRequest(targets=[1] * 4)), "targets"),
        (lambda: wire.attributes_from_pb({str(n): None for n in range(65)}), "attributes"),
        (
            lambda: wire.attribute_from_pb(
                filter_pb2.AttributeValue(string_list_value={"values": ["x"] * 257}), "a"
            ),
            "a",
        ),
    ],
)
def test_what_is_too_many_is_refused_before_it_is_converted(read, field):
    with pytest.raises(InvalidField) as caught:
        read()
    assert caught.value.field == field
