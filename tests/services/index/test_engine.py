"""The engine: what is written can be found as asked for, and it starts and ends cleanly."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest

from mmesh import Candidate, Content
from mmesh.collections import CollectionLimits, CollectionSettings
from mmesh.content import Modality
from mmesh.errors import (
    CollectionNotFound,
    CollectionReadOnly,
    DeadlineExceeded,
    DimMismatch,
    FailedPrecondition,
    HistoryLost,
    InvalidField,
    InvalidFilter,
    LogUnavailable,
    ModelMismatch,
    StaleReplica,
    Unavailable,
)
from mmesh.filter_language import parse_filter
from mmesh.filters import Compare, Operator
from mmesh.search import Consistency
from mmesh.serving import supervision
from mmesh.serving.deadline import Deadline
from mmesh.values.tokens import Token
from mmesh.vector_search import VectorSearch
from services.index import metrics
from services.index.config import IndexSettings
from services.index.engine import FEW_IDS, IndexEngine, MirrorVectors
from services.index.log import copying
from services.index.log.log import Log

DIM, MODEL = 4, "model"
EYE = np.eye(DIM, dtype=np.float32)

TWO = Candidate("two", Content.of("text"), {"one": 1, "two": 2})


@pytest.fixture
def start(tmp_path):
    """Start an engine on the data of this test: `async with start() as engine`."""

    @asynccontextmanager
    async def start(**options):
        settings = IndexSettings(
            data_dir=tmp_path / "data",
            scratch_dir=tmp_path / "scratch",
            **{"poll_s": 0.005, "snapshot_s": 0, "quiet_s": 1e9} | options,
        )
        async with IndexEngine(settings) as engine:
            yield engine
        assert not supervision.unwell()

    return start


@pytest.fixture
async def engine(start):
    """An engine with the empty collection "c"."""
    async with start() as engine:
        await engine.create_collection("c", DIM, MODEL, CollectionSettings(), "")
        yield engine


def candidates(*ids):
    return [Candidate(i, Content.of(f"text of {i}"), {"name": i}) for i in ids]


async def put(engine, *ids, collection="c", vectors=EYE, **options):
    rows = vectors[: len(ids)]
    return await engine.upsert(collection, candidates(*ids), rows, MODEL, "", **options)


async def search(engine, *, collection="c", query=EYE[:1], seconds=10, **options):
    """Return the ids of the nearest texts."""
    order = {
        "queries": query,
        "model_fingerprint": MODEL,
        "modalities": (Modality.TEXT,),
        "limit": 10,
        "filter": None,
        "consistency": Consistency.STRONG,
        "token": "",
    }
    found = await engine.search(
        VectorSearch(collection, **order | options), Deadline.after(seconds)
    )
    return list(found.lists[0][0].ids)


# -- writing and finding


async def test_a_share_of_searches_is_probed_until_the_collection_is_gone(start, until):
    def series():
        samples = metrics.recall_wanted_total.collect()[0].samples
        return [one for one in samples if one.labels["collection"] == "looked at"]

    async with start(probe_share=1.0) as engine:
        await engine.create_collection("looked at", DIM, MODEL, CollectionSettings(), "")
        await put(engine, "a", "b", collection="looked at")
        async with asyncio.timeout(30):
            while not series():  # as soon as this process has used enough CPU
                await search(engine, collection="looked at")
        await engine.delete_collection("looked at", "")
        await until(lambda: not series())


async def test_what_was_written_is_found_by_strong_and_session_searches(engine):
    token = await put(engine, "a", "b")
    assert (await search(engine))[0] == "a"
    token = await put(engine, "b", "c")
    session = {"consistency": Consistency.SESSION, "token": token}
    assert (await search(engine, query=EYE[:1], **session))[0] == "b"


async def test_what_was_deleted_is_not_found(engine):
    await put(engine, "a", "b", "c")
    count, token = await engine.delete("c", ["a", "unknown"], "")
    assert (count, token[-2:]) == (1, ":4")
    assert sorted(await search(engine)) == ["b", "c"]


async def test_deleting_by_filter_deletes_what_it_holds_for(engine):
    await put(engine, "a", "b", "c")
    count, _ = await engine.delete_by_filter("c", Compare("name", Operator.LESS, "c"), "")
    assert count == 2
    assert await search(engine) == ["c"]


async def test_a_copy_is_searched_as_its_source_was_and_reproducibly(engine):
    random = np.random.default_rng(0)
    vectors = np.repeat(random.normal(size=(6, DIM)), 2, axis=0).astype(np.float32)
    await put(engine, *"lkjihgfedcba", vectors=vectors)
    made = await engine.copy_collection("c", "copy", "", Deadline.after(10))
    await engine.delete("c", list("abcdef"), "")
    queries = random.normal(size=(8, DIM)).astype(np.float32)
    asked = {"collection": "copy", "token": made.token, "consistency": Consistency.SESSION}
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for query in queries:
        scores = dict(zip("lkjihgfedcba", unit @ query, strict=True))
        wanted = sorted(scores, key=lambda one: (-round(float(scores[one]), 5), one))[:10]
        assert await search(engine, query=query[None], **asked) == wanted
    with pytest.raises(CollectionReadOnly):
        await put(engine, "a", collection="copy")
    with pytest.raises(CollectionReadOnly):
        await engine.delete_by_filter("copy", Compare("name", Operator.EQUAL, "a"), "")
    assert sorted(await search(engine)) == sorted("lkjihg")


async def test_copies_are_made_one_at_a_time_and_others_wait_as_long_as_they_may(
    engine, monkeypatch
):
    running, most = 0, 0

    def copy(*arguments, made=Log.copy_collection):
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        time.sleep(0.05)
        running -= 1
        return made(*arguments)

    await put(engine, "a")
    monkeypatch.setattr(Log, "copy_collection", copy)
    names = [f"copy-{number}" for number in range(4)]
    await asyncio.gather(*(engine.copy_collection("c", n, "", Deadline.after(10)) for n in names))
    assert most == 1
    late = (engine.copy_collection("c", f"late-{n}", "", Deadline.after(0.01)) for n in range(2))
    for outcome in await asyncio.gather(*late, return_exceptions=True):
        assert isinstance(outcome, DeadlineExceeded)


@pytest.fixture
def half_way(monkeypatch):
    """Let copies stop after their first page until the test goes on."""
    begun, going_on = threading.Event(), threading.Event()

    def put(*given, known=copying._put):
        known(*given)
        begun.set()
        assert going_on.wait(20)

    monkeypatch.setattr(copying, "_put", put)
    yield SimpleNamespace(begun=begun, going_on=going_on)
    going_on.set()


async def test_a_copy_that_was_cancelled_never_appears_and_makes_room(engine, half_way, until):
    await put(engine, "a")
    copy = asyncio.create_task(engine.copy_collection("c", "copy", "", Deadline.after(60)))
    await until(half_way.begun.is_set)
    copy.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copy
    half_way.going_on.set()
    await engine.copy_collection("c", "next", "", Deadline.after(10))
    assert [one.name for one in await engine.list_collections("", 9)] == ["c", "next"]


async def test_copies_end_with_the_engine(start, half_way, until):
    async with start() as engine:
        await engine.create_collection("c", DIM, MODEL, CollectionSettings(), "")
        await put(engine, "a")
        copies = [
            asyncio.create_task(engine.copy_collection("c", name, "", Deadline.after(60)))
            for name in ("copy", "waits")
        ]
        await until(half_way.begun.is_set)
        asyncio.get_running_loop().call_later(0.1, half_way.going_on.set)
    for outcome in await asyncio.gather(*copies, return_exceptions=True):
        assert isinstance(outcome, Unavailable)
    async with start() as engine:
        assert [one.name for one in await engine.list_collections("", 9)] == ["c"]


# 2 s: a segment is built.
async def test_processes_that_hold_a_copy_in_other_ways_answer_alike(start):
    random = np.random.default_rng(0)
    vectors = np.repeat(random.normal(size=(40, DIM)), 5, axis=0).astype(np.float32)
    order = VectorSearch(
        "copy", random.normal(size=(9, DIM)).astype(np.float32), MODEL, (Modality.TEXT,), 17,
        None, Consistency.STRONG, "",
    )  # fmt: skip

    async def answer(engine):
        found = await engine.search(order, Deadline.after(10))
        return [(list(one.ids), one.scores.tobytes()) for (one,) in found.lists]

    async with start(seal_rows=16) as one, start(seal_rows=4096) as other:
        await one.create_collection("c", DIM, MODEL, CollectionSettings(), "")
        await put(one, *(f"{n:03}" for n in random.permutation(200)), vectors=vectors)
        await one.copy_collection("c", "copy", "", Deadline.after(10))
        first = await answer(one)
        assert await answer(other) == first
        await other.compact("copy", Deadline.after(60))
        assert await answer(other) == first


async def test_a_filter_chooses(engine):
    await put(engine, "a", "b", "c")
    assert await search(engine, filter=Compare("name", Operator.EQUAL, "b")) == ["b"]


JANUARY, MAY = datetime(2024, 1, 31, tzinfo=UTC), datetime(2024, 5, 1, 12, tzinfo=UTC)


async def put_with(engine, **attributes):
    """Store candidates with these attributes, by id; the empty text has none of any name."""
    made = [Candidate(i, Content.of("text"), found) for i, found in attributes.items()]
    return await engine.upsert("c", made, np.tile(EYE[:1], (len(made), 1)), MODEL, "")


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("taken >= 2024-02-01", ["may"]),
        ("taken = 2024-01-31", ["january"]),
        ("taken < 2024-05-01T14:00:00.5+02:00", ["january", "may"]),
        ('taken < "2024-05-01"', ["january"]),
        ('taken in ("2024-01-31T00:00:00Z", 2024-05-01T12:00Z)', ["january", "may"]),
        ("taken is null", ["never"]),
        ("taken is not null and not taken > 2024-03-01", ["january"]),
        ("not exists title", ["january", "may"]),
    ],
)
async def test_moments_and_their_absence_are_filtered(engine, expression, wanted):
    await put_with(engine, january={"taken": JANUARY}, may={"taken": MAY}, never={"title": "x"})
    assert sorted(await search(engine, filter=parse_filter(expression))) == wanted
    found = {one.id: one.attributes for one in (await engine.get("c", ["january", "may"]))[0]}
    assert found == {"january": {"taken": JANUARY}, "may": {"taken": MAY}}


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("taken > 2024", "of type timestamp, with a value of type integer"),
        ('taken > "last year"', "'last year' is no RFC 3339 time; write it like 2024-01-31"),
        ("title = 2024-01-31", "with a value of type timestamp; a text is written in quotes"),
    ],
)
async def test_what_is_no_moment_is_refused_with_the_fix(engine, expression, says):
    await put_with(engine, may={"taken": MAY}, never={"title": "x"})
    with pytest.raises(InvalidFilter, match=says):
        await search(engine, filter=parse_filter(expression))


async def test_candidates_come_back_as_they_were_written(engine):
    await put(engine, "a", "b")
    found, _ = await engine.get("c", ["b", "unknown", "a"])
    assert [(one.id, one.attributes) for one in found] == [
        ("b", {"name": "b"}),
        ("a", {"name": "a"}),
    ]
    row, page = await engine.page("c", "a", 10)
    assert (row.name, [one.id for one in page.rows], page.is_last) == ("c", ["b"], True)


async def test_of_many_candidates_as_many_are_read_as_fit(engine, monkeypatch):
    ids = [f"id{number:02}" for number in range(FEW_IDS + 1)]
    for start in range(0, len(ids), DIM):
        await put(engine, *ids[start : start + DIM])
    read = []
    get = engine._open.log.get
    monkeypatch.setattr(
        engine._open.log, "get", lambda name, ids: read.extend(ids) or get(name, ids)
    )
    one = engine._open.log.sizes("c", ["id00"])["id00"]
    found, left = await engine.get("c", ["unknown", *ids], 3 * one)
    assert read == ids[:3]
    assert [one.id for one in found] + left == ids


async def test_a_search_that_cannot_be_fresh_in_time_says_so(start):
    async with start(poll_s=60) as engine:
        await engine.create_collection("c", DIM, MODEL, CollectionSettings(), "")
        await search(engine)
        engine._open.follower.look = lambda *_: None  # so what is written now is seen much later
        token = await put(engine, "a")
        with pytest.raises(StaleReplica):
            await search(engine, consistency=Consistency.SESSION, token=token, seconds=0.02)


@pytest.mark.parametrize("stamp", ["", "0123456789ab"])
async def test_a_token_of_a_write_that_the_log_does_not_have_is_refused_by_name(engine, stamp):
    token = Token.parse(await put(engine, "a"))
    later = str(Token(token.epoch, 99, stamp))
    with pytest.raises(HistoryLost, match="Search without the token"):
        await search(engine, consistency=Consistency.SESSION, token=later)
    other = Token(token.epoch, token.seq, "0123456789ab")
    with pytest.raises(HistoryLost):
        await search(engine, consistency=Consistency.SESSION, token=str(other))


async def test_a_token_of_an_earlier_release_is_taken(engine):
    token = Token.parse(await put(engine, "a"))
    old = f"{token.epoch}:{token.seq}"
    assert await search(engine, consistency=Consistency.SESSION, token=old)


@pytest.mark.parametrize("token", ["", "nonsense", "e:", "e:-1", "e:1e9"])
async def test_what_is_no_token_is_refused(engine, token):
    with pytest.raises(InvalidField, match="token"):
        await search(engine, consistency=Consistency.SESSION, token=token)


async def test_vectors_of_another_width_or_model_are_refused(engine):
    with pytest.raises(DimMismatch):
        await search(engine, query=np.ones((1, 3), np.float32))
    with pytest.raises(ModelMismatch):
        await search(engine, model_fingerprint="another")
    with pytest.raises(InvalidField, match="2 rows for 1 candidates"):
        await engine.upsert("c", candidates("a"), EYE[:2], MODEL, "")


async def test_limits_of_the_collection_hold(engine, until):
    limits = CollectionLimits(max_limit=5, max_attributes=1)
    await engine.update_collection("c", {"max_limit": 5, "max_attributes": 1}, "")
    with pytest.raises(InvalidField, match="limit"):
        await search(engine, limit=6)
    await until(lambda: engine._open.follower.row("c").settings.limits == limits)
    with pytest.raises(InvalidField, match="attributes has 2"):
        await engine.upsert("c", [TWO], EYE[:1], MODEL, "")


async def test_a_mirror_gets_the_vectors_of_its_own_model(engine):
    await engine.create_collection("new", 2, "other", CollectionSettings(), "")
    await engine.update_collection("c", {"mirror": "new"}, "")
    rows = np.array([[1, 0], [0, 0]], np.float32)
    await put(engine, "a", "b", mirror=MirrorVectors(rows, "other"))
    assert (await engine.get_collection("c")).candidates[Modality.TEXT] == 2
    assert (await engine.get_collection("new")).candidates[Modality.TEXT] == 1
    found = await search(engine, collection="new", query=rows[:1], model_fingerprint="other")
    assert found == ["a"]
    with pytest.raises(InvalidField, match="mirror_vectors"):
        await put(engine, "a", mirror=MirrorVectors(rows, "other"))
    with pytest.raises(FailedPrecondition):
        await engine.fill("new", candidates("z"), rows[:1], "other", "")


# -- collections


async def test_collections_and_aliases_come_and_go(engine):
    assert await engine.set_alias("alias", "c", "") == ""
    assert (await engine.get_collection("alias")).name == "c"
    await put(engine, "a", collection="alias")
    assert await search(engine, collection="alias") == ["a"]
    await engine.delete_alias("alias", "")
    assert [one.aliases for one in await engine.list_collections("", 10)] == [()]
    assert await engine.delete_collection("c", "") == 1
    with pytest.raises(CollectionNotFound):
        await search(engine)


async def test_a_new_collection_of_an_old_name_has_nothing_of_the_old_one(engine):
    await put(engine, "old")
    assert await search(engine, consistency=Consistency.EVENTUAL) in ([], ["old"])
    await engine.delete_collection("c", "")
    await engine.create_collection("c", DIM, MODEL, CollectionSettings(), "")
    await put(engine, "new")
    assert await search(engine) == ["new"]


# -- what it holds


async def test_it_says_what_it_holds(engine):
    await put(engine, "a", "b", "c")
    await search(engine)
    state = engine.describe_shard()
    assert (state.candidates, state.lag, state.refused) == (3, 0, [])
    [delta] = state.segments
    assert (delta.collection, delta.index_factory, delta.rows) == ("c", "Delta", 3)
    assert state.memory["process"] > 0


async def test_compaction_makes_one_segment_and_a_snapshot_a_token(engine):
    # costs the start of the builder's process, about 2 s
    token = await put(engine, "a", "b", "c")
    state = await engine.compact("c", Deadline.after(60))
    assert [(one.index_factory, one.rows) for one in state.segments] == [("Flat", 3)]
    assert await engine.snapshot("c", Deadline.after(60)) == (1, token)
    assert (await search(engine))[0] == "a"


# -- starting and ending


async def test_what_was_written_is_there_after_a_restart(start):
    async with start() as engine:
        await engine.create_collection("c", DIM, MODEL, CollectionSettings(), "")
        await put(engine, "a")
        await engine.snapshot("c", Deadline.after(60))
        await put(engine, "b")
    async with start() as engine:
        assert engine.is_ready
        assert sorted(await search(engine, consistency=Consistency.EVENTUAL)) == ["a", "b"]


async def test_nothing_is_left_of_an_engine_that_ended(start, tmp_path):
    async with start() as engine:
        await engine.create_collection("c", DIM, MODEL, CollectionSettings(), "")
        await put(engine, "a")
    assert not list((tmp_path / "scratch").iterdir())
    assert {task for task in asyncio.all_tasks() if task.get_name().startswith("index-")} == set()


async def test_before_the_log_is_reached_calls_are_told_so(tmp_path):
    """A process that starts is no sign that the log is away: that wakes somebody."""
    engine = IndexEngine(IndexSettings(data_dir=tmp_path))
    assert not engine.is_ready
    with pytest.raises(Unavailable) as refused:
        await engine.get_collection("c")
    assert refused.value.reason == Unavailable.reason
    await engine.__aexit__()


async def test_a_log_that_does_not_answer_a_start_is_named(tmp_path):
    (tmp_path / "log.db").mkdir()
    engine = IndexEngine(IndexSettings(data_dir=tmp_path))
    starting = asyncio.create_task(engine.__aenter__())
    async with asyncio.timeout(10):
        while True:
            with pytest.raises(Unavailable) as refused:
                await engine.get_collection("c")
            if refused.value.reason == LogUnavailable.reason:
                break
            await asyncio.sleep(0.01)
    starting.cancel()
    await asyncio.wait([starting])
    await engine.__aexit__()


async def test_a_start_that_is_broken_off_leaves_nothing(start, tmp_path):
    (tmp_path / "data").mkdir()
    log = Log(f"sqlite:///{tmp_path / 'data' / 'log.db'}")
    log.create_collection("c", DIM, MODEL, CollectionSettings())
    log.close()

    async def run():
        async with start(memory_limit_bytes=0):
            raise AssertionError("it was not to get so far")

    starting = asyncio.create_task(run())
    async with asyncio.timeout(10):
        while not (tmp_path / "scratch").exists():  # noqa: ASYNC110  # nothing tells but looking
            await asyncio.sleep(0.001)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not list((tmp_path / "scratch").iterdir())
    assert {task for task in asyncio.all_tasks() if task.get_name().startswith("index-")} == set()


async def test_a_collection_that_does_not_fit_keeps_the_engine_from_nothing_else(start):
    async with start() as engine:
        await engine.create_collection("c", DIM, MODEL, CollectionSettings(), "")
        await put(engine, "a")
    async with start(memory_limit_bytes=1) as engine:
        assert engine.is_ready
        assert engine.describe_shard().refused == ["c"]
        assert (await engine.get_collection("c")).candidates[Modality.TEXT] == 1


# -- what is known of attributes


async def test_a_collection_tells_its_attributes_when_asked(engine):
    await put_with(
        engine, a={"price": 10, "taken": JANUARY, "sold": True}, b={"price": 9.99, "tags": ("x",)}
    )
    assert (await engine.get_collection("c")).attributes == ()
    found = (await engine.get_collection("c", with_attributes=True)).attributes
    assert [(one.name, one.type and one.type.value, one.count) for one in found] == [
        ("price", "float", 2),
        ("sold", "boolean", 1),
        ("tags", "string_list", 1),
        ("taken", "timestamp", 1),
    ]


@pytest.mark.parametrize(
    ("expression", "unknown"),
    [
        ("price > 9", {}),
        ("prise > 9 or not tags = 'x'", {"prise": "price", "tags": ""}),
        ("elsewhere is null and price in (10)", {"elsewhere": ""}),
    ],
)
async def test_an_attribute_that_no_candidate_has_is_named(engine, expression, unknown):
    await put_with(engine, a={"price": 10})
    order = VectorSearch(
        "c", EYE[:1], MODEL, (Modality.TEXT,), 10, parse_filter(expression), Consistency.STRONG, ""
    )
    assert (await engine.search(order, Deadline.after(10))).unknown == unknown


async def test_large_integers_stay_exact_beside_floats(engine):
    big = 2**53 + 1
    await put_with(engine, a={"n": big}, b={"n": big - 1}, c={"n": 0.5})
    for expression, wanted in (
        (f"n = {big}", ["a"]),
        (f"n < {big}", ["b", "c"]),
        ("n >= 9007199254740992.0", ["a", "b"]),
    ):
        assert sorted(await search(engine, filter=parse_filter(expression))) == wanted


async def test_a_search_that_sees_a_write_knows_its_attributes_and_types(start):
    """The view may be ahead of the row that was seen last, which has the types."""
    async with start(poll_s=60) as engine:
        await engine.create_collection("c", DIM, MODEL, CollectionSettings(), "")
        for n, (value, expression) in enumerate(
            [(1, "n = 1"), ("x", "m0 = 'x'"), (2.5, "m1 > 2"), ("y", "n = 'y'")] * 3
        ):
            name = expression.split()[0]
            await engine.delete("c", ["a"], "")
            token = await put_with(engine, a={name: value}, **{f"b{n}": {}})
            order = VectorSearch("c", EYE[:1], MODEL, (Modality.TEXT,), 10,
                                 parse_filter(expression), Consistency.SESSION, token)  # fmt: skip
            found = await engine.search(order, Deadline.after(10))
            assert (list(found.lists[0][0].ids), found.unknown) == (["a"], {})
