"""Health tracking of an index process: what it says, when it is asked, what opens its circuit."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from mmesh import wire
from mmesh.api.index.v1 import index_pb2
from mmesh.errors import DeadlineExceeded, LogUnavailable, Overloaded, StaleReplica, Unavailable
from mmesh.serving.deadline import Deadline
from services.gateway.shards.replica import ASK_S, LOOK_S, Replica
from tests.effort import patient


class Watched:
    """A replica, and how often it told of a change."""

    def __init__(self, process):
        self.changes, self.defects = 0, []
        self.replica = Replica(process.address, self._note_change)

    def _note_change(self):
        self.changes += 1
        if self.defects:
            raise self.defects.pop()

    @property
    def state(self):
        return self.replica.is_usable, self.replica.place

    async def becomes(self, usable):
        async with asyncio.timeout(5):
            while self.replica.is_usable is not usable:  # noqa: ASYNC110  # it tells nobody else
                await asyncio.sleep(0.005)


@pytest.fixture
async def process(start_index):
    (process,) = await start_index((1, 2))
    return process


@pytest.fixture
async def watched(process, monkeypatch):
    monkeypatch.setattr("services.gateway.shards.replica.ASK_S", patient(ASK_S))
    watched = Watched(process)
    yield watched
    await watched.replica.close()


def request_of(rows=1):
    queries = wire.vectors_to_pb(np.ones((rows, 4), np.float32))
    return index_pb2.SearchRequest(collection="c", queries=queries, modalities=[1])


# -- what it says


async def test_a_process_is_not_used_before_it_has_answered(watched):
    assert watched.state == (False, None)
    assert "not asked yet" in watched.replica.error.message
    await watched.replica.ask()
    assert watched.state == (True, (1, 2))
    assert (watched.replica.error, watched.changes) == (None, 1)


async def test_a_process_that_loads_its_shard_is_known_and_not_used(process, watched):
    process.facts["ready"] = False
    await watched.replica.ask()
    assert watched.state == (False, (1, 2))
    process.facts["ready"] = True
    await watched.replica.ask()
    assert watched.state == (True, (1, 2))
    assert watched.changes == 2


async def test_changes_are_told_and_nothing_else(process, watched):
    for _ in range(3):
        await watched.replica.ask()
    assert watched.changes == 1
    process.facts |= {"shard": 0, "shard_count": 3}
    await watched.replica.ask()
    assert (watched.state, watched.changes) == ((True, (0, 3)), 2)


@pytest.mark.parametrize("place", [(2, 2), (0, 0), (-1, 2)])
async def test_a_process_that_says_nonsense_is_not_used(process, watched, place):
    process.facts |= dict(zip(("shard", "shard_count"), place, strict=True))
    await watched.replica.ask()
    assert watched.state == (False, None)
    assert "it says that it holds shard" in watched.replica.error.message


async def test_what_a_process_said_is_kept_while_it_is_silent(process, watched):
    await watched.replica.ask()
    await process.stop()
    await watched.replica.ask()
    assert watched.state == (False, (1, 2))
    assert process.address in watched.replica.error.message
    await process.start()
    watched.replica.start()
    await watched.becomes(True)


async def test_those_who_ask_at_a_time_share_a_call(process, watched):
    await asyncio.gather(*(watched.replica.ask() for _ in range(50)))
    assert process.calls["GetShard"] == 1


# -- what opens its circuit


@pytest.mark.parametrize(
    ("error", "given_s", "usable"),
    [
        (Unavailable("gone"), 0.0, False),
        (DeadlineExceeded("late"), patient(ASK_S), False),
        (DeadlineExceeded("late"), 0.05, True),
        (StaleReplica("behind"), 9.0, True),
        (LogUnavailable("the log is away"), 9.0, True),
        (Overloaded("full"), 9.0, True),
    ],
    ids=lambda value: getattr(value, "reason", str(value)),
)
async def test_a_failure_takes_trust_away_only_if_it_is_the_process_own(
    watched, error, given_s, usable
):
    await watched.replica.ask()
    watched.replica.blame(error, given_s)
    assert watched.replica.is_usable is usable
    await watched.replica.ask()
    assert watched.replica.is_usable


async def test_a_process_in_doubt_is_asked_at_once(process, watched):
    watched.replica.start()
    await watched.becomes(True)
    asked = process.calls["GetShard"]
    async with asyncio.timeout(LOOK_S / 2):  # before it would be asked anyway
        watched.replica.blame(DeadlineExceeded("late"), 0.05)
        while process.calls["GetShard"] == asked:  # noqa: ASYNC110  # it tells nobody else
            await asyncio.sleep(0.005)


async def test_a_defect_does_not_end_the_watch(process, watched, caplog):
    watched.defects = [TypeError("a defect")]
    watched.replica.start()
    await watched.becomes(True)
    process.facts["ready"] = False
    await watched.becomes(False)
    assert watched.changes == 2
    assert "a defect" in caplog.text


# -- searching, and the end


async def test_a_search_is_answered_whether_it_is_small_or_large(process, watched):
    for rows in (1, 8192):
        _, lists = await watched.replica.search(request_of(rows), Deadline.after(10))
        assert len(lists) == rows
    assert process.calls["Search alone"] == 1


async def test_a_process_that_was_taken_out_is_asked_no_more_but_searches_go_on(process, watched):
    watched.replica.start()
    await watched.becomes(True)
    retiring = asyncio.create_task(watched.replica.retire())
    await asyncio.sleep(0.05)
    asked = process.calls["GetShard"]
    watched.replica.blame(DeadlineExceeded("late"), 0.05)
    _, lists = await watched.replica.search(request_of(), Deadline.after(3))
    assert lists[0].ids == ["1 of 2"]
    assert process.calls["GetShard"] == asked
    retiring.cancel()
    await asyncio.gather(retiring, return_exceptions=True)
    with pytest.raises(Exception, match=r"(?i)closed"):
        await watched.replica.ask()


def ours():
    """Return the tasks that run code of the gateway; others are gRPC's."""
    codes = (getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks())
    where = "services/gateway/shards/"
    return [c.co_name for c in codes if c and where in c.co_filename.replace(f"tests/{where}", "")]


async def test_closing_leaves_nothing_running(process):
    watched = Watched(process)
    watched.replica.start()
    process.free.clear()
    search = asyncio.create_task(watched.replica.search(request_of(), Deadline.after(3)))
    await asyncio.sleep(0.05)
    assert sorted(ours()) == ["_ask", "_run", "search"]
    await watched.replica.close()
    with pytest.raises(Unavailable):
        await search
    process.free.set()
    assert ours() == []
