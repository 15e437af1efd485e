"""A log that loses its tail: whoever reflected it begins anew, whatever was written since.

The log is put back as a restore does it, in one transaction of somebody else's, on both engines.
"""

from __future__ import annotations

from contextlib import asynccontextmanager

import numpy as np
import pytest

from mmesh import Candidate, Content
from mmesh.collections import CollectionSettings
from mmesh.content import Modality
from mmesh.errors import HistoryLost
from mmesh.search import Consistency
from mmesh.serving.deadline import Deadline
from mmesh.values.tokens import Token
from mmesh.vector_search import VectorSearch
from services.index.config import IndexSettings
from services.index.engine import IndexEngine
from services.index.log import commits
from services.index.log.tables import candidates, collections
from services.index.point import BEGINNING, Point

DIM, MODEL = 4, "model"
NEVER_S = 1e9


@pytest.fixture
def start(tmp_path, log_url):
    """Start an engine on the log of this test, which looks at it when it is asked to."""

    @asynccontextmanager
    async def start(name="one", **options):
        given = {"poll_s": NEVER_S, "snapshot_s": 0, "quiet_s": NEVER_S} | options
        settings = IndexSettings(
            data_dir=tmp_path / "data", scratch_dir=tmp_path / name, log_url=log_url, **given
        )
        async with IndexEngine(settings) as engine:
            yield engine

    return start


@pytest.fixture
async def engine(start):
    """An engine with the empty collection "c"."""
    async with start() as engine:
        await engine.create_collection("c", DIM, MODEL, CollectionSettings(), "")
        yield engine


async def put(engine, start, end, prefix="t", collection="c"):
    """Write candidates by number, in groups of 10 rows; return the last token."""
    token = ""
    for first in range(start, end, 10):
        rows = [
            Candidate(f"{prefix}{n:04}", Content.of(f"{prefix} {n}"))
            for n in range(first, min(end, first + 10))
        ]
        vectors = np.ones((len(rows), DIM), np.float32)
        token = await engine.upsert(collection, rows, vectors, MODEL, "")
    return token


async def found(engine, consistency=Consistency.STRONG, token="", collection="c"):
    """Return the ids of all candidates that a search finds."""
    order = VectorSearch(
        collection,
        np.ones((1, DIM), np.float32),
        MODEL,
        (Modality.TEXT,),
        1000,
        None,
        consistency,
        token,
    )
    searched = await engine.search(order, Deadline.after(20))
    ids = list(searched.lists[0][0].ids)
    assert len(ids) == len(set(ids))
    return sorted(ids)


def logged(engine, collection="c"):
    return [row.id for row in engine._open.log.page(collection, "", 10_000).rows]


async def test_a_view_ahead_of_its_log_is_left_at_once(engine, copies):
    await put(engine, 0, 100)
    copy = copies.take()
    await put(engine, 100, 200)
    assert len(await found(engine)) == 200
    copies.put_back(copy)
    assert await found(engine) == logged(engine)
    assert len(logged(engine)) == 100


@pytest.mark.parametrize("more", [99, 100, 101, 150])
async def test_a_view_that_its_log_has_overtaken_is_left_too(engine, start, copies, more):
    """The other process writes below, up to, and beyond the number that this one has reached."""
    await put(engine, 0, 100)
    copy = copies.take()
    await put(engine, 100, 200)
    assert len(await found(engine)) == 200
    copies.put_back(copy)
    async with start("two") as other:
        await put(other, 0, more, prefix="new")
    assert await found(engine) == logged(engine)
    assert len(logged(engine)) == 100 + more


async def test_a_replica_that_only_follows_finds_out_by_itself(engine, start, copies, until):
    await put(engine, 0, 50)
    copy = copies.take()
    await put(engine, 50, 100)
    async with start("two", poll_s=0.005) as replica:
        assert len(await found(replica)) == 100
        copies.put_back(copy)
        await put(engine, 0, 80, prefix="new")
        head = engine._open.log.collection("c").token
        views = replica._open.follower.views
        await until(lambda: "c" in views and views["c"].token == head)
        assert await found(replica, Consistency.EVENTUAL) == logged(engine)


async def test_tokens_of_what_was_lost_are_refused_and_all_others_taken(engine, copies):
    early = await put(engine, 0, 60)
    late = await put(engine, 60, 100)
    copy = copies.take()
    lost = await put(engine, 100, 150)
    copies.put_back(copy)
    await found(engine)  # so that the engine has looked at its log
    with pytest.raises(HistoryLost):
        await found(engine, Consistency.SESSION, lost)
    new = await put(engine, 0, 80, prefix="new")
    with pytest.raises(HistoryLost, match="restored to an earlier state"):
        await found(engine, Consistency.SESSION, lost)
    for token, least in ((early, 60), (late, 100), (new, 180)):
        ids = await found(engine, Consistency.SESSION, token)
        assert len(ids) >= least
        assert set(ids) <= set(logged(engine))


async def test_a_token_of_the_new_history_is_not_answered_from_the_old_one(engine, start, copies):
    await put(engine, 0, 100)
    copy = copies.take()
    await put(engine, 100, 200)
    await found(engine)
    copies.put_back(copy)
    async with start("two") as other:
        token = await put(other, 0, 30, prefix="new")
    assert await found(engine, Consistency.SESSION, token) == logged(engine)


@pytest.mark.parametrize("more", [0, 50, 120])
async def test_after_a_restart_a_snapshot_of_what_was_lost_is_passed_over(start, copies, more):
    async with start() as engine:
        await engine.create_collection("c", DIM, MODEL, CollectionSettings(), "")
        await put(engine, 0, 60)
        sound = await engine.snapshot("c", Deadline.after(20))
        await put(engine, 60, 100)
        copy = copies.take()
        await put(engine, 100, 150)
        lost = await engine.snapshot("c", Deadline.after(20))
    copies.put_back(copy)
    async with start("two") as other:
        await put(other, 0, more, prefix="new")
    async with start("three") as engine:
        view = engine._open.follower.views["c"]
        assert await found(engine) == logged(engine)
        assert view.stored == Token.parse(sound[1]).seq, "it began with the sound snapshot"
        number, _ = await engine.snapshot("c", Deadline.after(20))
        assert number == lost[0] + 1
    async with start("four") as engine:
        assert engine._open.follower.views["c"].stored == 100 + more
        assert await found(engine) == logged(engine)


async def test_other_collections_go_on_as_they_were(engine, copies):
    await engine.create_collection("other", DIM, MODEL, CollectionSettings(), "")
    await put(engine, 0, 20, collection="other")
    await put(engine, 0, 20)
    copy = copies.take()
    await put(engine, 20, 40)
    await found(engine)
    await found(engine, collection="other")
    view = engine._open.follower.views["other"]
    copies.put_back(copy)
    assert await found(engine) == logged(engine)
    assert await found(engine, collection="other") == logged(engine, "other")
    assert engine._open.follower.views["other"] is view


async def test_a_tool_that_puts_back_the_rows_alone_hides_nothing(engine, start, copies):
    """Stamps of later commits are left behind: they count for nothing beyond the head."""
    await put(engine, 0, 100)
    copy = copies.take([candidates, collections])
    await put(engine, 100, 200)
    await found(engine)
    copies.put_back(copy)
    assert await found(engine) == logged(engine)
    await put(engine, 0, 150, prefix="new")
    assert await found(engine) == logged(engine)


async def test_a_head_that_was_set_back_by_hand_hides_nothing(engine):
    await put(engine, 0, 100)
    await put(engine, 100, 200)
    await found(engine)
    with engine._open.log._database.write() as connection:
        connection.execute(candidates.delete().where(candidates.c.seq > 100))
        connection.execute(collections.update().values(seq=100, text_count=100))
    for more in (0, 40, 150):
        await put(engine, 0, more, prefix=f"new{more}-")
        assert await found(engine) == logged(engine)


async def test_writes_of_a_release_without_stamps_cost_no_view(engine):
    """Processes of two releases write during a rolling update; the older ones leave no stamps."""
    await put(engine, 0, 20)
    await found(engine)
    log, view = engine._open.log, engine._open.follower.views["c"]
    for n in range(3):
        seq = log.collection("c").seq + 1
        with log._database.write() as connection:
            one = candidates.update().where(candidates.c.id == "t0000")
            connection.execute(one.values(seq=seq))
            connection.execute(collections.update().values(seq=seq))
        assert len(await found(engine)) == 20 + n
        await put(engine, 20 + n, 21 + n)
        assert len(await found(engine)) == 21 + n
        assert engine._open.follower.views["c"] is view


async def test_stamps_of_old_commits_are_forgotten_and_what_needs_them_begins_anew(engine):
    log = engine._open.log
    tokens = [Token.parse(await put(engine, n, n + 1)) for n in range(30)]
    row = log.collection("c")
    points = [Point(token.seq, token.stamp) for token in tokens]
    assert all(log.holds(row, point) for point in points)
    with log._database.write() as connection:
        oldest = commits.oldest_remembered(connection, row.key, 11)
        assert oldest == points[-11].seq
        commits.forget_before(connection, row.key, oldest)
    assert [log.holds(row, points[n]) for n in (3, -12, -11, -1)] == [False, False, True, True]
    log.purge(NEVER_S)
    assert log.holds(row, row.head)
    read = (range(256), 100, DIM)
    with pytest.raises(HistoryLost):
        log.read_after("c", row.epoch, points[3].seq, *read, stamp=points[3].stamp)
    rows, _ = log.read_after("c", row.epoch, points[-3].seq, *read, stamp=points[-3].stamp)
    assert list(rows.commits) == points[-2:]


async def test_of_points_without_a_stamp_only_those_beyond_the_head_are_known_to_be_lost(engine):
    log = engine._open.log
    await put(engine, 0, 30)
    row = log.collection("c")
    assert log.holds(row, Point(31, "")) is False
    assert log.holds(row, Point(7, "")) is None
    assert log.holds(row, BEGINNING) is True
