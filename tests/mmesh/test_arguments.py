"""Python values as callers have them: taken, or an `InvalidField` that names the field."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from datetime import date, datetime
from types import SimpleNamespace

import numpy as np
import pytest

from mmesh import (
    AsyncClient,
    Candidate,
    Client,
    CollectionLimits,
    CollectionSettings,
    Content,
    Embedded,
    arguments,
)
from mmesh.api.gateway.v1 import gateway_pb2
from mmesh.candidates import check_candidate
from mmesh.content import Image, Modality
from mmesh.errors import FailedPrecondition, InvalidField, InvalidFilter, InvalidVector
from mmesh.filters import AllOf, AnyOf, Compare, Exists, In, Not, Operator
from mmesh.ingest import Ingest
from mmesh.search import MergePolicy, Rerank, Search
from mmesh.wire import candidate_to_pb, filter_to_pb
from mmesh.wire.search import search_to_pb

NOWHERE = "127.0.0.1:1"
GOOD = Candidate("a", Content.of("words"))
TEXT = Content.of("words")


@pytest.fixture(scope="module")
def client():
    with Client(NOWHERE) as client:
        yield client


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"bytes")
    return path


def with_id(value):
    return [GOOD, Candidate(value, TEXT)]


def with_content(value):
    return [Candidate("a", value)]


def with_attribute(value):
    return [Candidate("a", TEXT, {"v": value})]


WRONG = [
    ("upsert_candidates", ("c", with_id(5)), "candidates[1].id"),
    ("upsert_candidates", ("c", with_id(None)), "candidates[1].id"),
    ("upsert_candidates", ("c", GOOD), "candidates"),
    ("upsert_candidates", ("c", ["a"]), "candidates[0]"),
    ("upsert_candidates", ("c", with_content(5)), "candidates[0].content"),
    ("upsert_candidates", ("c", with_content(Content(5))), "candidates[0].content"),
    ("upsert_candidates", ("c", with_content(Content(("a", 5)))), "candidates[0].content.parts[1]"),
    ("upsert_candidates", ("c", with_content(Content((Image("data"),)))),
     "candidates[0].content.parts[0].image.data"),
    ("upsert_candidates", ("c", with_content(Content((Image(5),)))),
     "candidates[0].content.parts[0].image.data"),
    ("upsert_candidates", ("c", with_content(Content((Image(b"a", 5),)))),
     "candidates[0].content.parts[0].image.media_type"),
    ("upsert_candidates", ("c", with_content(Image(b"a", "\ud800"))),
     "candidates[0].content.image.media_type"),
    ("upsert_candidates", ("c", [Candidate("5", TEXT, ["v"])]), "candidates[0].attributes"),
    ("upsert_candidates", ("c", [Candidate("5", TEXT, {5: "v"})]),
     "the name of one of candidates[0].attributes"),
    ("upsert_candidates", ("c", with_attribute((1, 2))), "candidates[0].attributes['v'][0]"),
    ("upsert_candidates", ("c", with_attribute(None)), "candidates[0].attributes['v']"),
    ("upsert_candidates", ("c", with_attribute({"a": 1})), "candidates[0].attributes['v']"),
    ("upsert_candidates", ("c", with_attribute(np.datetime64("NaT", "ns"))),
     "candidates[0].attributes['v']"),
    ("upsert_candidates", ("c", with_attribute(np.datetime64(1 << 60, "us"))),
     "candidates[0].attributes['v']"),
    ("upsert_candidates", ("c", with_attribute(np.timedelta64(5, "ns"))),
     "candidates[0].attributes['v']"),
    ("upsert_candidates", ("c", with_attribute(np.timedelta64(5, "s"))),
     "candidates[0].attributes['v']"),
    ("upsert_candidates", ("c", with_attribute(b"v")), "candidates[0].attributes['v']"),
    ("upsert_candidates", (5, [GOOD]), "collection"),
    ("delete_candidates", ("c", "abc"), "ids"),
    ("delete_candidates", ("c", 5), "ids"),
    ("delete_candidates", ("c", ["a", 5]), "ids[1]"),
    ("batch_get_candidates", ("c", "abc"), "ids"),
    ("delete_candidates_by_filter", ("c", {"a": 1}), "filter"),
    ("search", ("c", 5), "query"),
    ("search", ("c", ["a", 5]), "query.parts[1]"),
    ("search", (None, "words"), "collection"),
    ("create_collection", ("c", {"max_limit": 5}), "settings"),
    ("create_collection", ("c", CollectionSettings(limits=CollectionLimits(max_limit="5"))),
     "settings.limits.max_limit"),
    ("set_alias", ("a", None), "collection"),
    ("get_collection", (b"c",), "name"),
    ("get_collection", ("c\ud83d",), "name"),
    ("delete_candidates", ("c", ["a", "\ud83d"]), "ids[1]"),
    ("batch_get_candidates", ("c", ["caf\udce9"]), "ids[0]"),
    ("upsert_candidates", ("c", with_id("\ud83d")), "candidates[1].id"),
    ("upsert_candidates", ("c", with_attribute("\ud83d")), "candidates[0].attributes['v']"),
    ("upsert_candidates", ("c", with_attribute(1 << 63)), "candidates[0].attributes['v']"),
    ("delete_candidates_by_filter", ("c", Compare("n", Operator.LESS, 1 << 63)), "filter"),
    ("delete_candidates_by_filter", ("c", "n = 9223372036854775808"), "filter"),
    ("list_candidates", ("c\ud83d",), "collection"),
    ("create_collection", ("c", CollectionSettings(limits=CollectionLimits(max_limit=1 << 70))),
     "settings.limits.max_limit"),
    ("create_collection", ("c", CollectionSettings(mirror="\ud83d")), "settings.mirror"),
]  # fmt: skip
WRONG_OPTIONS = [
    ("target", "pictures"), ("target", 1), ("merge", "best"), ("consistency", 3), ("limit", "5"),
    ("limit", 5.0), ("filter", {"a": 1}), ("rerank", 20), ("instruction", 5), ("token", 5),
    ("include_content", "yes"), ("timeout", "5"), ("timeout", float("nan")),
    ("timeout", 10**400),
]  # fmt: skip


@pytest.mark.parametrize(("call", "given", "field"), WRONG)
def test_a_wrong_type_is_an_invalid_field_by_name(client, call, given, field):
    with pytest.raises(InvalidField) as failure:
        getattr(client, call)(*given)
    assert failure.value.field == field


@pytest.mark.parametrize(("option", "value"), WRONG_OPTIONS)
def test_a_wrong_option_of_a_search_is_an_invalid_field_by_name(client, option, value):
    with pytest.raises(InvalidField) as failure:
        client.search("c", "words", **{option: value})
    assert failure.value.field == option


WRONG_SEARCHES = [
    (Search("c", TEXT, limit="5"), "limit"),
    (Search("c", TEXT, limit=1 << 40), "limit"),
    (Search("c", TEXT, instruction=5), "instruction"),
    (Search("c", TEXT, instruction="cut \ud83d"), "instruction"),
    (Search("c", Content(("cut \ud83d",))), "query.parts[0].text"),
    (Search("c\ud83d", TEXT), "collection"),
    (Search("c", TEXT, token="\ud83d"), "token"),
    (Search("c", TEXT, filter=Compare("n", Operator.EQUAL, 1 << 63)), "filter"),
    (Search("c", TEXT, filter=In("n", (1, 1 << 63))), "filter"),
    (Search("c", TEXT, filter=Compare("k", Operator.EQUAL, "\ud83d")), "filter"),
    (Search("c", TEXT, filter=Not(Exists("\ud83d"))), "filter"),
    (Search("c", TEXT, filter=Compare("k", Operator.EQUAL, None)), "filter"),
]


@pytest.mark.parametrize(("search", "field"), WRONG_SEARCHES)
def test_a_wrong_search_of_a_batch_is_an_error_of_its_own(client, search, field):
    (outcome,) = client.search_batch([search])
    assert isinstance(outcome, InvalidField)
    assert outcome.field == field


def test_what_is_no_search_is_refused_with_all_of_its_batch(client):
    with pytest.raises(InvalidField) as refused:
        client.search_batch([Search("c", TEXT), "no search"])
    assert refused.value.field == "searches[1]"


async def test_the_other_searches_of_a_batch_are_asked():
    asked = []

    async def answer(request, timeout):
        asked.extend(search.query.parts[0].text for search in request.searches)
        response = gateway_pb2.SearchResponse(token="seen")
        results = [gateway_pb2.SearchResult(response=response)] * len(request.searches)
        return gateway_pb2.SearchBatchResponse(results=results)

    client = AsyncClient(NOWHERE)
    client._known_stub = SimpleNamespace(SearchBatch=answer)
    client._loop = asyncio.get_running_loop()
    bad = [search for search, _ in WRONG_SEARCHES]
    good = [Search("c", Content.of(f"{n}")) for n in range(3)]
    outcomes = await client.search_batch([good[0], *bad, good[1], good[2]])
    assert asked == ["0", "1", "2"]
    assert [isinstance(one, InvalidField) for one in outcomes] == [
        False, *[True] * len(bad), False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"),
    [("batch_size", 0), ("batch_size", -5), ("patience_s", -1), ("patience_s", float("nan"))],
)
def test_an_ingest_that_could_send_nothing_is_refused(client, option, value):
    with pytest.raises(InvalidField) as failure:
        client.ingest("c", [GOOD], **{option: value})
    assert failure.value.field == option


def test_a_file_that_is_not_there_is_an_invalid_field(client, tmp_path):
    with pytest.raises(InvalidField, match=r"query names the file .*none.png.*No such file"):
        client.search("c", tmp_path / "none.png")


async def test_an_ingest_refuses_what_is_no_candidate_and_goes_on():
    ingest = Ingest(None, "c", _source(5, Candidate(7, TEXT), GOOD), 64, 1.0)  # no stub is used
    item = await ingest._next_item()
    assert item.message.id == "a"
    refused = ingest._report().rejected
    assert [(one.id, one.error.field) for one in refused] == [
        ("", "candidate"),
        ("7", "candidate.id"),
    ]


class Unreadable:
    """What an object of a caller's may do when it is looked at."""

    @property
    def id(self) -> str:
        raise OSError("gone")

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise RuntimeError("on another device")


BAD_VECTORS = {
    "no numbers": [None] * 3,
    "texts": ["0.1"] * 3,
    "ragged": [[1.0], [1.0, 2.0]],
    "complex": [1j] * 3,
    "times": np.array(["2020-01-01"] * 3, "datetime64[us]"),
    "unreadable": Unreadable(),
    "empty": [],
    "narrow": [1.0, 2.0],
    "NaN": [float("nan")] * 3,
    "rows": [[1.0, 2.0, 3.0]],
}


@pytest.mark.parametrize("vector", BAD_VECTORS.values(), ids=BAD_VECTORS)
async def test_an_ingest_refuses_a_bad_vector_and_goes_on(vector):
    good = Embedded(GOOD, [1.0, 2.0, 3.0])
    ingest = Ingest(None, "c", _source(good, Embedded(GOOD, vector), good), 64, 1.0)
    assert [(await ingest._next_item()).number for _ in range(2)] == [0, 2]
    (refused,) = ingest._report().rejected
    assert (refused.number, type(refused.error)) == (1, InvalidVector)


async def test_an_ingest_refuses_what_cannot_even_be_looked_at():
    odd = Candidate("odd", TEXT, {"v": Unreadable()})
    ingest = Ingest(None, "c", _source(Unreadable(), odd, GOOD), 64, 1.0)
    assert (await ingest._next_item()).number == 2
    assert [one.id for one in ingest._report().rejected] == ["", "odd"]


@pytest.mark.parametrize("rows", [[[1.0], [1.0, 2.0]], [["a"], ["b"]], [[None], [1.0]]])
def test_an_upsert_refuses_vectors_that_are_no_numbers(client, rows):
    with pytest.raises(InvalidVector):
        client.upsert_candidates("c", [GOOD, GOOD], vectors=rows)


async def _source(*items):
    for item in items:
        yield item


def test_every_argument_of_every_call_is_checked_or_checks_itself():
    self_checked = {"self", "candidates", "vectors", "on_progress", "options"}
    for name, call in inspect.getmembers(AsyncClient, inspect.iscoroutinefunction):
        if not name.startswith("_") and name != "close":
            assert set(inspect.signature(call).parameters) <= arguments.TAKERS.keys() | self_checked


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(5), 5),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (["a", "b"], ("a", "b")),
        (np.array(["a", "b"]), ("a", "b")),
        (np.array(3), 3),
        (np.datetime64("2020-01-01", "D"), date(2020, 1, 1)),
        (np.datetime64("2020-01-01T12:30", "us"), datetime(2020, 1, 1, 12, 30)),
        (np.datetime64("2020-01-01T12:30", "ns"), datetime(2020, 1, 1, 12, 30)),
        (np.array("2020-01-01T12:30", "datetime64[ns]"), datetime(2020, 1, 1, 12, 30)),
    ],
)
def test_values_of_numpy_and_lists_are_taken_as_attributes(value, expected):
    taken = arguments.candidate(Candidate("a", TEXT, {"v": value}), "candidate")
    check_candidate(taken, "candidate")
    assert taken.attributes["v"] == expected
    assert type(taken.attributes["v"]) is type(expected)
    candidate_to_pb(taken)


def test_bytes_and_paths_are_taken_as_pictures(picture):
    expected = Content((Image(b"bytes"),))
    for given in (picture, b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), Image(b"bytes")):
        assert Content.of(given) == arguments.content(given, "query") == expected
    assert arguments.content(["words", picture], "query") == Content(("words", Image(b"bytes")))
    assert arguments.content(Content((Image(picture),)), "query") == expected


def test_names_of_enums_and_numbers_of_numpy_are_taken_by_searches():
    given = Search(
        np.str_("c"),
        "words",
        target="image",
        limit=np.int64(3),
        merge="rrf",
        rerank=Rerank(np.int32(5)),
        include_content=np.bool_(True),
    )
    taken = arguments.search(given)
    expected = Search(
        "c",
        TEXT,
        target=Modality.IMAGE,
        limit=3,
        merge=MergePolicy.RRF,
        rerank=Rerank(5),
        include_content=True,
    )
    assert taken == expected
    search_to_pb(taken)


@pytest.mark.parametrize("timeout", [1e10, float("inf"), None])
def test_a_time_limit_of_ages_is_none(timeout):
    assert arguments.seconds(timeout, "timeout") is None


def test_a_closed_client_says_so():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client = Client(NOWHERE)
        client.close()
        client.close()
        with pytest.raises(FailedPrecondition, match="the client is closed"):
            client.search("c", "words")


async def test_a_closed_async_client_says_so():
    client = AsyncClient(NOWHERE)
    await client.close()
    with pytest.raises(FailedPrecondition, match="the client is closed"):
        await client.search("c", "words")
    with pytest.raises(FailedPrecondition, match="the client is closed"):
        await client.ingest("c", [GOOD])


@pytest.mark.parametrize("address", ["", "localhost", "http://localhost:50550"])
def test_a_variable_that_holds_no_address_is_named(monkeypatch, address):
    monkeypatch.setenv("MMESH_TARGET_ADDRESS", address)
    for make in (Client, AsyncClient):
        with pytest.raises(InvalidField) as failure:
            make()
        assert failure.value.field == "MMESH_TARGET_ADDRESS"
        make(NOWHERE)


def test_an_async_client_may_be_made_outside_of_a_loop():
    client = AsyncClient(NOWHERE)

    async def use() -> None:
        async with client:
            with pytest.raises(InvalidField):
                await client.search("c", 5)

    asyncio.run(use())


def test_a_page_size_that_fits_into_no_message_is_an_invalid_field(client):
    with pytest.raises(InvalidField) as refused:
        client.list_candidates("c", page_size=1 << 40)
    assert refused.value.field == "page_size"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Compare("year", Operator.EQUAL, np.int64(2000)), 2000),
        (Compare("price", Operator.LESS, np.float32(0.5)), 0.5),
        (Compare("sold", Operator.EQUAL, np.bool_(True)), True),
        (Compare("name", Operator.EQUAL, np.str_("a")), "a"),
        (Compare("at", Operator.LESS, np.datetime64("2020-01-01", "ns")), datetime(2020, 1, 1)),
        (In("year", tuple(np.array([2000, 2001]))), (2000, 2001)),
        (In("year", np.array([2000, 2001])), (2000, 2001)),
    ],
)
def test_values_of_numpy_are_taken_in_filters(given, expected):
    whole = AllOf((Exists("a"), AnyOf((Not(given), given))))
    taken = arguments.search(Search("c", TEXT, filter=whole)).filter
    inner = taken.filters[1].filters[1]
    values = inner.values if isinstance(inner, In) else inner.value
    assert values == expected
    assert type(values) is type(expected)
    assert taken.filters[1].filters[0] == Not(inner)
    filter_to_pb(taken)


def nested(depth: int):
    condition = Exists("a")
    for _ in range(depth):
        condition = Not(condition)
    return condition


NOT_COMPARABLE = {
    "NaN": Compare("price", Operator.EQUAL, float("nan")),
    "infinity": In("price", (1.0, float("inf"))),
    "NaN of numpy": Not(Compare("price", Operator.LESS, np.float32("nan"))),
    "span": Compare("t", Operator.EQUAL, np.timedelta64(5, "ns")),
    "deep": nested(2000),
}


@pytest.mark.parametrize("condition", NOT_COMPARABLE.values(), ids=NOT_COMPARABLE)
def test_what_no_attribute_can_be_is_an_invalid_filter_of_its_search(client, condition):
    (outcome,) = client.search_batch([Search("c", TEXT, filter=condition)])
    assert isinstance(outcome, InvalidFilter)
    assert outcome.field == "filter"


def test_what_is_no_filter_is_named_inside_of_one_as_well():
    with pytest.raises(InvalidField) as failure:
        arguments.condition(AllOf((Exists("a"), "year > 5")), "filter")
    assert failure.value.field == "filter"


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), np.float64("nan")])
def test_a_budget_that_is_no_number_is_an_invalid_field_of_its_search(client, seconds):
    (outcome,) = client.search_batch([Search("c", TEXT, rerank=Rerank(3, seconds))])
    assert isinstance(outcome, InvalidField)
    assert outcome.field == "rerank.max_seconds"


def test_a_filter_may_be_given_as_text():
    condition = arguments.condition("year >= 1969", "filter")
    assert condition == Compare("year", Operator.GREATER_OR_EQUAL, 1969)
    with pytest.raises(InvalidFilter):
        arguments.condition("year >=", "filter")
