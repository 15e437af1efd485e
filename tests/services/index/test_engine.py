"""The engine: what is written can be found as asked for, and it starts and ends cleanly."""

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest

from mmesh import Candidate, Content
from mmesh.collections import CollectionLimits, CollectionSettings
from mmesh.content import Modality
from mmesh.errors import (
    CollectionNotFound,
    DimMismatch,
    FailedPrecondition,
    InvalidField,
    LogUnavailable,
    ModelMismatch,
    StaleReplica,
)
from mmesh.filters import Compare, Operator
from mmesh.search import Consistency
from mmesh.serving import supervision
from mmesh.serving.deadline import Deadline
from mmesh.vector_search import VectorSearch
from services.index.config import IndexSettings
from services.index.engine import IndexEngine, MirrorVectors
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
            data_dir=tmp_path / "data", scratch_dir=tmp_path / "scratch",
            **{"poll_s": 0.005, "snapshot_s": 0, "quiet_s": 1e9} | options,
        )  # fmt: skip
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
        "queries": query, "model_fingerprint": MODEL, "modalities": (Modality.TEXT,), "limit": 10,
        "filter": None, "consistency": Consistency.STRONG, "token": "",
    }  # fmt: skip
    found = await engine.search(
        VectorSearch(collection, **order | options), Deadline.after(seconds)
    )
    return list(found.lists[0][0].ids)


# -- writing and finding


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


async def test_a_filter_chooses(engine):
    await put(engine, "a", "b", "c")
    assert await search(engine, filter=Compare("name", Operator.EQUAL, "b")) == ["b"]


async def test_candidates_come_back_as_they_were_written(engine):
    await put(engine, "a", "b")
    found = await engine.get("c", ["b", "unknown", "a"])
    assert [(one.id, one.attributes) for one in found] == [
        ("b", {"name": "b"}),
        ("a", {"name": "a"}),
    ]
    row, page = await engine.page("c", "a", 10)
    assert (row.name, [one.id for one in page]) == ("c", ["b"])


async def test_a_search_that_cannot_be_fresh_in_time_says_so(engine):
    token = await put(engine, "a")
    later = f"{token.partition(':')[0]}:99"
    with pytest.raises(StaleReplica):
        await search(engine, consistency=Consistency.SESSION, token=later, seconds=0.02)


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
    engine = IndexEngine(IndexSettings(data_dir=tmp_path))
    assert not engine.is_ready
    with pytest.raises(LogUnavailable):
        await engine.get_collection("c")
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
