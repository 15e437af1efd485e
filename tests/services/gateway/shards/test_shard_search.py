"""Hedged search of replicated shards: replicas that die, hang, lag behind and are slow."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import REGISTRY

from mmesh import wire
from mmesh.content import Modality
from mmesh.errors import (
    CollectionNotFound,
    DataLoss,
    DeadlineExceeded,
    InternalError,
    LogUnavailable,
    MessageTooLarge,
    Overloaded,
    ShardUnavailable,
    StaleReplica,
    Unavailable,
)
from mmesh.filter_language import parse_filter
from mmesh.search import Consistency
from mmesh.serving.deadline import Deadline
from mmesh.values.tokens import Token
from mmesh.vector_search import VectorSearch
from services.gateway.interfaces import Scored
from services.gateway.shards.hedging import MOST_SAVED, SHARE

TEXT, IMAGE, PAIR = Modality


def whole(shard_count):
    return [f"{shard} of {shard_count}" for shard in range(shard_count)]


def metric(name, **labels):
    return REGISTRY.get_sample_value(f"mmesh_gateway_{name}", labels)


async def test_replicas_take_turns_in_every_shard(start_index, backend_of):
    processes = await start_index((0, 2), (1, 2), (0, 2), (1, 2))
    async with backend_of(*processes) as backend:
        for _ in range(10):
            assert await backend.found() == whole(2)
        assert [process.calls["Search"] for process in processes] == [5, 5, 5, 5]
        assert metric("replicas", shard="1") == 2


async def test_a_replica_that_dies_under_load_costs_no_search(start_index, backend_of):
    processes = await start_index((0, 2), (1, 2), (0, 2), (1, 2))
    async with backend_of(*processes) as backend:
        stop = asyncio.Event()

        async def keep_searching():
            count = 0
            while not stop.is_set():
                assert await backend.found() == whole(2)
                count += 1
            return count

        clients = [asyncio.create_task(keep_searching()) for _ in range(8)]
        for victim in (processes[0], processes[3]):
            await asyncio.sleep(0.2)
            await victim.stop()
            await asyncio.sleep(0.3)
            calls = victim.calls["Search"]
            await victim.start()
            await backend.eventually(lambda v=victim, n=calls: _is_searched_again(v, n))
        stop.set()
        assert sum(await asyncio.gather(*clients)) > 3 * len(clients)


async def _is_searched_again(process, calls):
    return process.calls["Search"] > calls


@pytest.mark.parametrize("error", [Unavailable("x"), Overloaded("x"), StaleReplica("x")])
async def test_what_one_replica_cannot_answer_another_can(start_index, backend_of, error):
    processes = await start_index((0, 1), (0, 1))
    processes[0].error = error
    async with backend_of(*processes) as backend:
        before = metric("replica_retries_total")
        for _ in range(4):
            assert await backend.found() == whole(1)
        assert metric("replica_retries_total") > before
        if type(error) is not Unavailable:
            assert processes[0].calls["Search"] == 2, "it is still trusted"


async def test_a_stale_answer_goes_round_the_replicas_once(start_index, backend_of):
    processes = await start_index((0, 1), (0, 1))
    for process in processes:
        process.error = StaleReplica("behind")
    async with backend_of(*processes) as backend:
        with pytest.raises(StaleReplica):
            await backend.found()
        assert [process.calls["Search"] for process in processes] == [1, 1]


async def test_an_error_of_the_log_is_not_taken_to_other_replicas(start_index, backend_of):
    processes = await start_index((0, 1), (0, 1))
    for process in processes:
        process.error = LogUnavailable("away")
    async with backend_of(*processes) as backend:
        with pytest.raises(ShardUnavailable, match="away"):
            await backend.found()
        with pytest.raises(LogUnavailable):
            await backend.get_collection("c", Deadline.after(1))
        assert sum(process.calls["Search"] for process in processes) == 1
        assert sorted(process.calls["GetCollection"] > 0 for process in processes) == [False, True]
        assert all(one.is_serving for one in await backend.status(Deadline.after(1)))


@pytest.mark.parametrize("error", [CollectionNotFound("c"), MessageTooLarge("many hits")])
async def test_an_error_of_the_request_is_not_tried_elsewhere(start_index, backend_of, error):
    processes = await start_index((0, 1), (0, 1))
    for process in processes:
        process.error = error
    async with backend_of(*processes) as backend:
        with pytest.raises(type(error)):
            await backend.found()
        assert sum(process.calls["Search"] for process in processes) == 1


async def test_a_replica_that_hangs_is_gone_round_and_then_left_alone(start_index, backend_of):
    processes = await start_index((0, 1), (0, 1))
    async with backend_of(*processes) as backend:
        processes[0].free.clear()
        hedges, retries = metric("hedges_total"), metric("replica_retries_total")
        for _ in range(2):  # one of two begins with the one that hangs
            assert await backend.found(1.0) == whole(1)
        assert metric("hedges_total") == hedges, "it had its part of the time"
        assert metric("replica_retries_total") == retries + 1

        async def is_known():
            return sum(one.is_serving for one in await backend.status(Deadline.after(2))) == 1

        await backend.eventually(is_known)
        calls = processes[0].calls["Search"]
        for _ in range(4):
            assert await backend.found() == whole(1)
        assert processes[0].calls["Search"] == calls
        processes[0].free.set()
        await backend.eventually(lambda: _turns(backend, processes[0], calls))


async def _turns(backend, process, calls):
    await backend.found()
    return process.calls["Search"] > calls


async def test_a_replica_that_is_slow_costs_little_and_keeps_its_trust(start_index, backend_of):
    processes = await start_index((0, 1), (0, 1))
    async with backend_of(*processes) as backend:
        await _learn(backend, processes)
        processes[0].pause_s, hedges = 0.9, metric("hedges_total")
        for _ in range(2):  # one of two begins with the slow one
            assert await backend.found(30) == whole(1)
        assert metric("hedges_total") == hedges + 1
        assert all(one.is_serving for one in await backend.status(Deadline.after(3)))


async def _learn(backend, processes):
    """Search until hedging has something to go by."""
    for pause_s in (0.03, 0.0):  # slow ones, beside which no other seems slow, then fast ones
        for process in processes:
            process.pause_s = pause_s
        for _ in range(64):
            assert await backend.found() == whole(1)


async def test_slow_searches_at_once_are_hedged_as_far_as_calls_are_saved(start_index, backend_of):
    # 2.4 s, to learn what is slow
    processes, count = await start_index((0, 1), (0, 1)), 60
    async with backend_of(*processes) as backend:
        await _learn(backend, processes)
        processes[0].pause_s, hedges = 0.3, metric("hedges_total")
        found = await asyncio.gather(*(backend.found(30) for _ in range(count)))
        assert found == [whole(1)] * count
        assert 0 < metric("hedges_total") - hedges <= MOST_SAVED + SHARE * count


async def test_searches_that_go_round_a_replica_that_hangs_spend_no_hedges(start_index, backend_of):
    # 3.5 s, to learn what is slow
    processes = await start_index((0, 1), (0, 1))
    async with backend_of(*processes) as backend:
        await _learn(backend, processes)
        processes[0].free.clear()
        await asyncio.gather(*(backend.found(1.5) for _ in range(200)), return_exceptions=True)
        processes[0].free.set()
        await backend.eventually(lambda: _all_serve(backend, 2))
        for _ in range(round(2 / SHARE)):
            assert await backend.found() == whole(1)
        processes[0].pause_s, hedges = 0.9, metric("hedges_total")
        for _ in range(2):
            assert await backend.found(30) == whole(1)
        assert metric("hedges_total") > hedges


async def _all_serve(backend, count):
    return len(await backend.serving()) == count


async def test_watching_ends_when_a_process_was_blamed_just_before(start_index, backend_of):
    (process,) = await start_index((0, 1))
    async with asyncio.timeout(10), backend_of(process.address) as backend:
        await backend.found()
        for replica in backend._topology.replicas:
            replica.blame(Unavailable("away"), 1.0)
            await asyncio.sleep(0)


async def test_a_caller_in_a_hurry_takes_no_trust_away(start_index, backend_of):
    (process,) = await start_index((0, 1))
    async with backend_of(process.address) as backend:
        process.free.clear()
        with pytest.raises(DeadlineExceeded):
            await backend.found(0.05)
        process.free.set()
        assert (await backend.status(Deadline.after(1)))[0].is_serving
        assert await backend.found() == whole(1)


async def test_the_only_replica_is_searched_again_as_soon_as_it_is_back(start_index, backend_of):
    processes = await start_index((0, 2), (1, 2))
    async with backend_of(*processes) as backend:
        await processes[1].stop()
        assert await backend.found() == ["0 of 2"]
        await processes[1].start()
        await backend.uses(2)
        processes[1].facts["ready"] = False
        await backend.eventually(lambda: _is(backend, ["0 of 2"]))
        processes[1].facts["ready"] = True
        assert await backend.found() == whole(2), "it is asked before it is given up"


async def _is(backend, ids):
    return await backend.found() == ids


# -- one search


def name_everything(request, response):
    """Fill in a hit for each query and modality, named by both, and with attributes if texts."""
    for row, query in enumerate(wire.vectors_from_pb(request.queries)):
        for modality in request.modalities:
            hits = response.lists.add(ids=[f"{row} {modality}", "last"])
            hits.scores = np.array([query[0], -1], "<f4").tobytes()
            if modality == wire.modality_to_pb(TEXT):
                for year in (1969, 1970):
                    hits.attributes.add().values["year"].integer_value = year


async def test_hits_come_by_query_and_modality_with_scores_and_attributes(start_index, backend_of):
    (process,) = await start_index((0, 1))
    process.fill = name_everything
    queries = np.array([[0.25, 0], [0.5, 0]], np.float32)
    async with backend_of(process) as backend:
        order = replace(backend.order, queries=queries, modalities=(IMAGE, TEXT))
        search = await backend.prepare(order, Deadline.after(3))
        answer = await search.search(0, Deadline.after(3))
    image, text = wire.modality_to_pb(IMAGE), wire.modality_to_pb(TEXT)
    assert [[hits[0].id for hits in lists] for lists in answer.lists] == [
        [f"0 {image}", f"0 {text}"],
        [f"1 {image}", f"1 {text}"],
    ]
    assert answer.lists[1][0][0] == Scored(f"1 {image}", IMAGE, 0.5, {})
    assert answer.lists[0][1] == [
        Scored(f"0 {text}", TEXT, 0.25, {"year": 1969}),
        Scored("last", TEXT, -1, {"year": 1970}),
    ]
    assert answer.token == Token("e", 1)


async def test_a_search_says_to_the_process_all_that_was_ordered(start_index, backend_of):
    (process,) = await start_index((0, 1))
    asked = []
    process.fill = lambda request, response: asked.append(request)
    condition = parse_filter("year >= 1969")
    order = VectorSearch(
        "photos",
        np.eye(1, 4, dtype=np.float32),
        "m-1",
        (TEXT,),
        7,
        condition,
        Consistency.SESSION,
        "e:5",
    )
    async with backend_of(process) as backend:
        await (await backend.prepare(order, Deadline.after(3))).search(0, Deadline.after(3))
    (request,) = asked
    assert (request.collection, request.model_fingerprint, request.limit) == ("photos", "m-1", 7)
    assert wire.filter_from_pb(request.filter) == condition
    assert (wire.consistency_from_pb(request.consistency), request.token) == (
        Consistency.SESSION,
        "e:5",
    )


async def test_a_large_search_is_a_call_of_its_own(start_index, backend_of):
    (process,) = await start_index((0, 1))
    async with backend_of(process) as backend:
        for rows, alone in ((1, 0), (8192, 1)):
            queries = np.ones((rows, 4), np.float32)
            order = replace(backend.order, queries=queries)
            search = await backend.prepare(order, Deadline.after(10))
            answer = await search.search(0, Deadline.after(10))
            assert len(answer.lists) == rows
            assert process.calls["Search alone"] == alone


async def test_a_shard_that_no_process_holds_is_named(start_index, backend_of):
    processes = await start_index((0, 2))
    async with backend_of(*processes) as backend:
        search = await backend.prepare(backend.order, Deadline.after(3))
        with pytest.raises(Unavailable, match="no replica of index shard 1 is ready"):
            await search.search(1, Deadline.after(3))


@pytest.mark.parametrize("error", [InternalError("a defect"), DataLoss("a file is broken")])
async def test_a_replica_with_a_defect_is_gone_round_and_stays_in_use(
    start_index, backend_of, error
):
    processes = await start_index((0, 1), (0, 1))
    processes[0].error = error
    async with backend_of(*processes) as backend:
        for _ in range(4):
            assert await backend.found() == whole(1)
        assert processes[0].calls["Search"] == 2
        assert len(await backend.serving()) == 2
