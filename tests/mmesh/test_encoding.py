"""Messages that are encoded piece by piece are those that protobuf would have encoded."""

import threading

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from mmesh.api.content.v1 import content_pb2
from mmesh.api.gateway.v1 import gateway_pb2
from mmesh.api.index.v1 import index_pb2
from mmesh.candidates import Candidate
from mmesh.content import Content, Image
from mmesh.wire import candidate_to_pb
from mmesh.wire.encoding import LARGE_BYTES, as_bytes, built, candidate_bytes, content_bytes, encode

PARTS = st.one_of(
    st.builds(lambda text: content_pb2.Part(text=text), st.text(max_size=300)),
    st.builds(
        lambda data, kind: content_pb2.Part(image=content_pb2.Image(data=data, media_type=kind)),
        st.binary(max_size=300),
        st.sampled_from(["", "image/png"]),
    ),
)
CONTENTS = st.builds(lambda parts: content_pb2.Content(parts=parts), st.lists(PARTS, max_size=3))


def search(content, limit, hits):
    request = gateway_pb2.SearchRequest(collection="c", query=content, limit=limit)
    response = gateway_pb2.SearchResponse(token="t")
    for number, one in enumerate(hits):
        hit = response.hits.add(id=f"id {number}", rank=number, score=-0.5, content=one)
        hit.attributes["year"].integer_value = -number
        hit.attributes["tags"].string_list_value.values.extend(["a", ""])
    response.coverage.shards_total = limit
    return request, response


@given(CONTENTS, st.integers(0, 2**31 - 1), st.lists(CONTENTS, max_size=4))
def test_pieces_join_to_the_same_message(content, limit, hits):
    for message in search(content, limit, hits):
        assert type(message).FromString(encode(message)) == message


def test_unset_and_empty_fields_stay_apart():
    for message in (index_pb2.SearchRequest(), gateway_pb2.SearchRequest(query={}, filter={})):
        copy = type(message).FromString(encode(message))
        assert json_format.MessageToDict(copy) == json_format.MessageToDict(message)
        assert [f.name for f, _ in copy.ListFields()] == [f.name for f, _ in message.ListFields()]


@pytest.mark.parametrize(("size", "inline"), [(LARGE_BYTES - 1, True), (LARGE_BYTES, False)])
async def test_only_large_messages_are_built_in_a_thread(size, inline):
    threads = []

    def build():
        threads.append(threading.get_ident())
        return content_pb2.Part(text="a")

    message = await built(size, build)
    assert (threads == [threading.get_ident()]) is inline
    assert isinstance(message, bytes) is not inline
    assert as_bytes(message) == build().SerializeToString()


def test_sizes_count_words_and_pictures():
    assert content_bytes([Content(("abc", Image(b"12345", ""))), Content(("d",))]) == 9


def test_sizes_of_candidates_are_near_those_of_their_messages():
    content = Content(("words " * 50, Image(b"p" * 5000, "image/png")))
    attributes = {"year": 1969, "tags": ("a" * 40, "b" * 50), "title": "x" * 300}
    candidates = [Candidate(f"id {number}", content, attributes) for number in range(9)]
    message = index_pb2.BatchGetCandidatesResponse(candidates=map(candidate_to_pb, candidates))
    assert candidate_bytes(candidates) == pytest.approx(len(message.SerializeToString()), rel=0.05)


def test_what_is_encoded_already_is_sent_as_it_is():
    message = content_pb2.Part(text="a")
    assert as_bytes(encode(message)) == as_bytes(message) == message.SerializeToString()
