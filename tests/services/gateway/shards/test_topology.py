"""Service discovery: which shard set is searched while index processes come and go."""

from __future__ import annotations

import json

import pytest
from prometheus_client import REGISTRY

from mmesh.errors import DeadlineExceeded, Draining, ShardUnavailable, Unavailable
from mmesh.mesh_status import ServiceRole, ServiceState
from mmesh.serving.deadline import Deadline
from services.gateway.search.fanout import search_shards
from services.gateway.shards.topology import NO_SET, ShardSet, choose
from tests.effort import patient


def whole(shard_count):
    return [f"{shard} of {shard_count}" for shard in range(shard_count)]


def metric(name, **labels):
    return REGISTRY.get_sample_value(f"mmesh_gateway_{name}", labels)


# -- which set


def a_set(shard_count, answering):
    return ShardSet(((),) * shard_count, answering)


@pytest.mark.parametrize(
    ("answering", "current", "chosen"),
    [
        ({}, 0, 0),
        ({2: 2}, 0, 2),
        ({2: 2, 3: 2}, 2, 2),
        ({2: 2, 3: 3}, 2, 3),
        ({2: 1, 3: 3}, 2, 3),
        ({2: 2, 3: 2}, 3, 2),
        ({2: 1, 4: 3}, 2, 4),
        ({2: 1, 4: 2}, 2, 2),
        ({2: 1, 4: 2}, 4, 4),
        ({2: 0, 4: 0}, 2, 2),
    ],
)
def test_the_newest_whole_set_is_used_or_else_what_is_nearest_to_one(answering, current, chosen):
    sets = {n: a_set(n, answered) for n, answered in answering.items()}
    assert choose(sets, {2: 0, 3: 1, 4: 2}, current).shard_count == chosen


def test_a_set_that_came_later_is_newer_whatever_its_size():
    sets = {n: a_set(n, n) for n in (2, 3)}
    assert choose(sets, {2: 9, 3: 1}, 3).shard_count == 2
    assert choose({}, {}, 2) is NO_SET


async def test_a_new_set_is_used_once_it_is_whole_and_until_it_is_not(
    start_index, backend_of, tmp_path
):
    old = await start_index((0, 2), (1, 2))
    new = await start_index((0, 3), (1, 3), (2, 3))
    new[2].facts["ready"] = False
    path = tmp_path / "index.json"
    path.write_text(json.dumps([one.address for one in old]))
    before = metric("shard_set_switches_total") or 0.0
    async with backend_of(f"file:{path}") as backend:
        assert await backend.found() == whole(2)
        path.write_text(json.dumps([one.address for one in old + new]))

        async def knows_all():
            return len(await backend.status(Deadline.after(1))) == 5

        await backend.eventually(knows_all)
        assert await backend.found() == whole(2)
        assert metric("shard_sets") == 1
        prepared = await backend.prepare(backend.order, Deadline.after(3))
        new[2].facts["ready"] = True
        await backend.uses(3)
        assert (metric("shard_sets"), metric("replicas", shard="2")) == (2, 1)
        assert prepared.shard_count == 2, "a search keeps the set that it has begun with"
        assert (await prepared.search(1, Deadline.after(3))).lists[0][0][0].id == "1 of 2"
        await new[0].stop()
        await backend.uses(2)
        assert metric("replicas", shard="2") is None
        await new[0].start()
        await backend.uses(3)
        path.write_text(json.dumps([one.address for one in new]))
        await backend.eventually(lambda: _has(backend, {(n, 3) for n in range(3)}))
        assert (await prepared.search(1, Deadline.after(3))).lists[0][0][0].id == "1 of 2"
    assert metric("shard_set_switches_total") == before + 3


async def _has(backend, places):
    found = await backend.status(Deadline.after(1))
    return {(one.shard, one.shard_count) for one in found} == places


async def test_the_order_of_addresses_tells_which_set_is_newer_when_both_are_there(
    start_index, backend_of
):
    small, large = await start_index((0, 1)), await start_index((0, 2), (1, 2))
    async with backend_of(*small, *large) as backend:
        assert await backend.found() == whole(2)
    async with backend_of(*large, *small) as backend:
        assert await backend.found() == whole(1)


async def test_without_a_whole_set_the_answer_says_what_is_missing(start_index, backend_of):
    processes = await start_index((0, 4), (1, 4), (3, 4))
    async with backend_of(*processes) as backend:
        found = await search_shards(backend, backend.order, Deadline.after(3))
        assert (found.answered, found.total, set(found.missing)) == (3, 4, {2})
        assert await _has(backend, {(n, 4) for n in range(4)})
        status = await backend.status(Deadline.after(1))
        missing = [one.shard for one in status if one.state is ServiceState.MISSING]
        assert (missing, backend.shard_count) == ([2], 4)


async def test_without_any_process_searches_and_writes_say_so(backend_of):
    async with backend_of("127.0.0.1:1") as backend:
        with pytest.raises(ShardUnavailable):
            await backend.found()
        with pytest.raises(Unavailable):
            await backend.get_collection("c", Deadline.after(1))
        (status,) = await backend.status(Deadline.after(1))
        assert (status.state, status.address) == (ServiceState.UNREACHABLE, "127.0.0.1:1")
        assert (status.shard_count, backend.shard_count) == (0, 0)


async def test_a_process_that_comes_up_late_is_found(start_index, backend_of):
    (process,) = await start_index((0, 1))
    await process.stop()
    async with backend_of(process.address) as backend:
        with pytest.raises(ShardUnavailable):
            await backend.found()
        await process.start()
        await backend.uses(1)


async def test_a_process_that_says_nonsense_is_not_used(start_index, backend_of):
    good, bad = await start_index((0, 1), (3, 2))
    async with backend_of(bad.address, good.address) as backend:
        assert await backend.found() == whole(1)


async def test_writes_and_reads_go_to_any_process_of_any_set(start_index, backend_of):
    processes = await start_index((0, 2), (1, 2), (0, 3))
    async with backend_of(*processes) as backend:
        for _ in range(6):
            await backend.get_collection("c", Deadline.after(patient(1)))
        assert [process.calls["GetCollection"] for process in processes] == [2, 2, 2]
        await processes[0].stop()
        processes[1].free.clear()
        for _ in range(3):
            await backend.get_collection("c", Deadline.after(patient(1)))
        assert processes[2].calls["GetCollection"] == 5


# 2 s: copies take most of the time that they have.
async def test_a_copy_is_made_by_one_process_in_all_of_the_time(start_index, backend_of):
    processes = await start_index((0, 3), (1, 3), (2, 3))
    async with backend_of(*processes) as backend:

        async def copy(deadline_s):
            for process in processes:
                process.calls.clear()
            try:
                await backend.copy_collection("c", "copy", "", Deadline.after(deadline_s))
            finally:
                calls = [process.calls["CopyCollection"] for process in processes]
            return sum(calls)

        for process in processes:
            process.pause_s = patient(1.0)
        assert await copy(patient(2.0)) == 1
        with pytest.raises(DeadlineExceeded):
            await copy(0.2)
        assert await backend.serving() == {process.address for process in processes}
        for process in processes[:2]:
            process.error = Draining("it is told to stop")
        processes[2].pause_s = 0.0
        assert await copy(30.0) in (1, 2, 3)


async def test_the_status_has_a_place_and_a_state_for_every_process(start_index, backend_of):
    processes = await start_index((0, 2), (1, 2), (0, 2), (2, 3))
    processes[2].facts["ready"] = False
    async with backend_of(*processes) as backend:
        found = await backend.status(Deadline.after(2))
        assert [(one.shard, one.shard_count, one.replica) for one in found] == [
            (0, 2, 0),
            (1, 2, 0),
            (0, 2, 1),
            (2, 3, 0),
        ]
        assert [one.address for one in found] == [process.address for process in processes]
        assert {one.role for one in found} == {ServiceRole.INDEX}
        serving, loading = ServiceState.SERVING, ServiceState.LOADING
        assert [one.state for one in found] == [serving, serving, loading, serving]
        assert backend.shard_count == 2
        assert found[1].detail.startswith("7 candidates, 1 writes behind, id ")
