"""Options, filters and bytes of a search that make no sense: refused by name, by the gateway."""

from __future__ import annotations

import grpc
import pytest

from mmesh.api.content.v1 import content_pb2
from mmesh.api.filter.v1 import filter_pb2
from mmesh.api.gateway.v1 import gateway_pb2 as pb

INVALID = grpc.StatusCode.INVALID_ARGUMENT
SERVICE = "/mmesh.api.gateway.v1.RetrievalService/"


@pytest.fixture(autouse=True)
async def the_gateway_goes_on(stub, collection):
    """Search after whatever the test did."""
    yield
    reply = await stub.Search(pb.SearchRequest(collection=collection, query=text_of("word")))
    assert reply.coverage.shards_answered == 2


def text_of(text: str) -> content_pb2.Content:
    return content_pb2.Content(parts=[content_pb2.Part(text=text)])


# -- options


@pytest.mark.parametrize("limit", [0, -1, 1001, 2**31 - 1, -(2**31)])
async def test_a_limit_out_of_1_to_1000_is_refused(stub, collection, refusal, limit):
    request = pb.SearchRequest(collection=collection, query=text_of("word"), limit=limit)
    refused = await refusal(stub.Search(request, timeout=10))
    assert (refused.code, refused.reason, refused.fields) == (INVALID, "INVALID_FIELD", ["limit"])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"rerank": pb.RerankOptions(candidates=-1)}, "rerank.candidates"),
        ({"rerank": pb.RerankOptions(candidates=257)}, "rerank.candidates"),
        ({"rerank": {"max_duration": {"seconds": 3601}}}, "rerank.max_duration"),
        ({"rerank": {"max_duration": {"seconds": -1}}}, "rerank.max_duration"),
        ({"rerank": pb.RerankOptions(max_image_tokens=-1)}, "rerank.max_image_tokens"),
        ({"target": 99}, "target"),
        ({"merge": 99}, "merge"),
        ({"consistency": 99}, "consistency"),
        ({"instruction": "x" * 4097}, "instruction"),
        ({"instruction": "a\0b"}, "instruction"),
    ],
    ids=["rerank -1", "rerank 257", "3601 seconds", "-1 seconds", "-1 tokens", "target 99",
         "merge 99", "consistency 99", "long instruction", "NUL in the instruction"],
)  # fmt: skip
async def test_an_option_out_of_its_limits_is_refused(stub, collection, refusal, options, field):
    request = pb.SearchRequest(collection=collection, query=text_of("word"), **options)
    refused = await refusal(stub.Search(request, timeout=10))
    assert (refused.code, refused.reason, refused.fields) == (INVALID, "INVALID_FIELD", [field])


# -- filters


def compare(operator: int, **value: object) -> filter_pb2.Filter:
    wanted = filter_pb2.AttributeValue(**value)
    compared = filter_pb2.Compare(attribute="year", operator=operator, value=wanted)
    return filter_pb2.Filter(compare=compared)


def nested(depth: int) -> filter_pb2.Filter:
    """Return a filter with `depth` levels; built from the outside, for the copy would be deep."""
    outermost = innermost = filter_pb2.Filter()
    for _ in range(depth - 1):
        innermost = getattr(innermost, "not")
    innermost.compare.CopyFrom(compare(filter_pb2.OPERATOR_EQUAL, integer_value=1).compare)
    return outermost


BAD_FILTERS = {
    "operator 99": (lambda: compare(99, integer_value=1), "filter.compare.operator"),
    "no operator": (lambda: compare(0, integer_value=1), "filter.compare.operator"),
    "nothing": (filter_pb2.Filter, "filter"),
    "nothing inside": (
        lambda: filter_pb2.Filter(all_of=filter_pb2.FilterList(filters=[filter_pb2.Filter()])),
        "filter.all_of",
    ),
    "no value": (lambda: compare(filter_pb2.OPERATOR_EQUAL), "filter.compare.value"),
    "an order of booleans": (
        lambda: compare(filter_pb2.OPERATOR_LESS, boolean_value=True),
        "filter",
    ),
    "17 deep": (lambda: nested(17), "filter"),
    "257 conditions": (
        lambda: filter_pb2.Filter(
            any_of=filter_pb2.FilterList(
                filters=[compare(filter_pb2.OPERATOR_EQUAL, integer_value=n) for n in range(257)]
            )
        ),
        "filter",
    ),
    "an empty set": (
        lambda: filter_pb2.Filter(**{"in": filter_pb2.Membership(attribute="year")}),
        "filter",
    ),
}
bad_filters = pytest.mark.parametrize(
    ("make", "field"), BAD_FILTERS.values(), ids=BAD_FILTERS.keys()
)


@bad_filters
async def test_a_filter_that_makes_no_sense_is_refused(stub, collection, refusal, make, field):
    request = pb.SearchRequest(collection=collection, query=text_of("word"), filter=make())
    refused = await refusal(stub.Search(request, timeout=10))
    assert (refused.code, refused.reason) == (INVALID, "INVALID_FILTER")
    assert refused.fields == [field]


@bad_filters
async def test_nothing_is_deleted_by_a_filter_that_makes_no_sense(
    stub, index, collection, refusal, make, field
):
    request = pb.DeleteCandidatesByFilterRequest(collection=collection, filter=make())
    refused = await refusal(stub.DeleteCandidatesByFilter(request, timeout=10))
    assert (refused.code, refused.reason, refused.fields) == (INVALID, "INVALID_FILTER", [field])


async def test_nothing_is_deleted_without_a_filter(stub, collection, refusal):
    request = pb.DeleteCandidatesByFilterRequest(collection=collection)
    refused = await refusal(stub.DeleteCandidatesByFilter(request, timeout=10))
    assert (refused.reason, refused.fields) == ("INVALID_FILTER", ["filter"])


def nested_bytes(depth: int) -> bytes:
    """Return a SearchRequest with a filter that deep; protobuf would not write it."""

    def field(number: int, body: bytes) -> bytes:
        size, length = len(body), bytearray()
        while size > 0x7F:
            length.append(size & 0x7F | 0x80)
            size >>= 7
        return bytes([number << 3 | 2]) + bytes(length) + bytes([size]) + body

    inner = compare(filter_pb2.OPERATOR_EQUAL, integer_value=1).SerializeToString()
    for _ in range(depth - 1):
        inner = field(filter_pb2.Filter.NOT_FIELD_NUMBER, inner)
    request = pb.SearchRequest(collection="c", query=text_of("word")).SerializeToString()
    return request + field(pb.SearchRequest.FILTER_FIELD_NUMBER, inner)


@pytest.mark.parametrize("depth", [17, 60, 101, 1000, 100_000])
async def test_a_filter_nested_too_deep_is_refused_whoever_notices(gateway, refusal, depth):
    message = nested_bytes(depth)
    assert depth > 90 or pb.SearchRequest.FromString(message).HasField("filter")
    refused = await refusal(gateway.unary_unary(SERVICE + "Search")(message, timeout=10))
    assert refused.code is INVALID
    assert refused.reason in ("INVALID_FILTER", "INVALID_REQUEST")


# -- bytes

NOT_UTF8 = b"\xff\xfe\xfd"


def spoilt(message: object) -> bytes:
    """Return the bytes of a message with its text SPOIL replaced by bytes that are not UTF-8."""
    return message.SerializeToString().replace(b"SPO", NOT_UTF8, 1)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("Search", pb.SearchRequest(collection="c", query=text_of("SPOIL"))),
        ("Search", pb.SearchRequest(collection="SPOIL", query=text_of("a"))),
        ("UpsertCandidates", pb.UpsertCandidatesRequest(collection="SPOIL")),
        ("GetCollection", pb.GetCollectionRequest(name="SPOIL")),
    ],
    ids=["text", "collection of a search", "collection of an upsert", "name"],
)
async def test_bytes_that_are_not_utf8_are_an_invalid_argument(gateway, refusal, method, message):
    call = gateway.unary_unary(SERVICE + method)
    refused = await refusal(call(spoilt(message), timeout=10))
    assert (refused.code, refused.reason) == (INVALID, "INVALID_REQUEST")


async def test_bytes_that_are_no_message_are_an_invalid_argument(gateway, refusal):
    call = gateway.unary_unary(SERVICE + "Search")
    refused = await refusal(call(b"\x07\xff\xff\xff", timeout=10))
    assert (refused.code, refused.reason) == (INVALID, "INVALID_REQUEST")
