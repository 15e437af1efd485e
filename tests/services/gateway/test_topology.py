"""Which index processes are searched: shard sets and replicas that come, go, hang and lie."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress

import grpc
import numpy as np
import pytest
from prometheus_client import REGISTRY

from mmesh import wire
from mmesh.api.index.v1 import collection_pb2, collection_pb2_grpc, index_pb2, index_pb2_grpc
from mmesh.content import Modality
from mmesh.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    LogUnavailable,
    MmeshError,
    Overloaded,
    ShardUnavailable,
    StaleReplica,
    Unavailable,
)
from mmesh.search import Consistency
from mmesh.serving.deadline import Deadline
from mmesh.wire.errors import status_of
from services.gateway.interfaces import ShardOrder
from services.gateway.search.fanout import search_shards
from services.gateway.shards.addresses import AddressBook
from services.gateway.shards.index_backend import IndexBackend
from services.gateway.shards.topology import NO_SET, ShardSet, choose
from services.index.search_stream import SearchStream
from tests.effort import patient

TEXT = Modality.TEXT
ORDER = ShardOrder(
    "c", np.eye(1, 4, dtype=np.float32), "m", (TEXT,), 10, None, Consistency.EVENTUAL, ""
)


class Process:
    """An index process that does as told; it may be stopped and started on the same port."""

    def __init__(self, shard, shard_count, *, ready=True, replica="r"):
        self.facts = {"shard": shard, "shard_count": shard_count, "ready": ready}
        self.replica, self.port = replica, 0
        self.calls = Counter()
        self.error: MmeshError | None = None
        """What searches and calls of the log end in."""
        self.free = asyncio.Event()
        """Cleared, no call is answered, not even the question what it holds."""
        self.free.set()
        self.pause_s = 0.0
        """How long a search takes."""
        self._server = None

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    async def start(self):
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        index = index_pb2_grpc.IndexServiceServicer()
        index.GetShard, index.SearchStream = self._get_shard, self._search_stream
        index_pb2_grpc.add_IndexServiceServicer_to_server(index, self._server)
        collections = collection_pb2_grpc.CollectionServiceServicer()
        collections.GetCollection = self._get_collection
        collection_pb2_grpc.add_CollectionServiceServicer_to_server(collections, self._server)
        self.port = self._server.add_insecure_port(self.address)
        await self._server.start()
        return self

    async def stop(self):
        await self._server.stop(None)

    async def _get_shard(self, request, context):
        self.calls["GetShard"] += 1
        await self.free.wait()
        return index_pb2.GetShardResponse(**self.facts, replica=self.replica, candidates=7, lag=1)

    async def _search_stream(self, requests, context):
        async for answer in SearchStream(self._search, asyncio.Event()).answers(requests):
            yield answer

    async def _search(self, request, response, deadline):
        self.calls["Search"] += 1
        await self.free.wait()
        if self.error is not None:
            raise self.error
        await asyncio.sleep(self.pause_s)
        for _ in range(wire.row_count(request.queries)):
            response.lists.add(
                ids=["{shard} of {shard_count}".format(**self.facts)],
                scores=np.array([0.5], "<f4").tobytes(),
                attributes=[index_pb2.AttributeMap()],
            )
        response.token = "e:1"

    async def _get_collection(self, request, context):
        self.calls["GetCollection"] += 1
        await self.free.wait()
        if self.error is not None:
            await context.abort_with_status(_Status.of(self.error))
        found = collection_pb2.Collection(name=request.name, token="e:1")
        return collection_pb2.GetCollectionResponse(collection=found)


class _Status(grpc.Status):
    @classmethod
    def of(cls, error):
        status = status_of(error)
        self = cls()
        self.code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
        self.details = status.message
        self.trailing_metadata = (("grpc-status-details-bin", status.SerializeToString()),)
        return self


@pytest.fixture
async def start():
    """Start processes: (shard, shard_count) of each."""
    running = []

    async def start(*places, **settings):
        made = [Process(*place, **settings) for place in places]
        running.extend(made)
        return [await process.start() for process in made]

    yield start
    for process in running:
        process.free.set()
        await process.stop()


@asynccontextmanager
async def backend_of(*sources):
    backend = IndexBackend(sources)
    try:
        await backend.start()
        yield backend
    finally:
        await backend.close()


def addresses_of(processes):
    return [process.address for process in processes]


async def search(backend, timeout_s=3.0):
    """Search, and return the hits' ids: each names its shard."""
    found = await search_shards(backend, ORDER, Deadline.after(timeout_s))
    assert found.answered + len(found.missing) == found.total
    return sorted(hit.id for hit in found.lists[0][TEXT])


def whole(shard_count):
    return [f"{shard} of {shard_count}" for shard in range(shard_count)]


async def eventually(holds, timeout_s=5.0):
    until = time.monotonic() + patient(timeout_s)
    while not await holds():
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


async def uses(backend, shard_count):
    """Wait until a set is searched; channels reconnect in their own time."""

    async def holds():
        with suppress(ShardUnavailable):
            return await search(backend) == whole(shard_count)
        return False

    await eventually(holds)


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


async def test_a_new_set_is_used_once_it_is_whole_and_until_it_is_not(start, tmp_path):
    old = await start((0, 2), (1, 2))
    new = await start((0, 3), (1, 3), (2, 3))
    new[2].facts["ready"] = False
    path = tmp_path / "index.json"
    path.write_text(json.dumps(addresses_of(old)))
    before = metric("shard_set_switches_total") or 0.0
    async with backend_of(f"file:{path}") as backend:
        assert await search(backend) == whole(2)
        path.write_text(json.dumps(addresses_of(old + new)))

        async def knows_all():
            return len(await backend.describe(Deadline.after(1))) == 5

        await eventually(knows_all)
        assert await search(backend) == whole(2)
        assert metric("shard_sets") == 1
        prepared = await backend.prepare(ORDER, Deadline.after(3))
        new[2].facts["ready"] = True
        await uses(backend, 3)
        assert (metric("shard_sets"), metric("replicas", shard="2")) == (2, 1)
        assert prepared.shard_count == 2, "a search keeps the set that it has begun with"
        assert (await prepared.search(1, Deadline.after(3))).lists[0][0][0].id == "1 of 2"
        await new[0].stop()
        await uses(backend, 2)
        assert metric("replicas", shard="2") is None
        await new[0].start()
        await uses(backend, 3)
        path.write_text(json.dumps(addresses_of(new)))
        await eventually(lambda: _has(backend, {"index-0", "index-1", "index-2"}))
        assert (await prepared.search(1, Deadline.after(3))).lists[0][0][0].id == "1 of 2"
    assert metric("shard_set_switches_total") == before + 3


async def _has(backend, names):
    return {one.name for one in await backend.describe(Deadline.after(1))} == names


async def test_the_order_of_addresses_tells_which_set_is_newer_when_both_are_there(start):
    small, large = await start((0, 1)), await start((0, 2), (1, 2))
    async with backend_of(*addresses_of(small + large)) as backend:
        assert await search(backend) == whole(2)
    async with backend_of(*addresses_of(large + small)) as backend:
        assert await search(backend) == whole(1)


async def test_without_a_whole_set_the_answer_says_what_is_missing(start):
    processes = await start((0, 4), (1, 4), (3, 4))
    async with backend_of(*addresses_of(processes)) as backend:
        found = await search_shards(backend, ORDER, Deadline.after(3))
        assert (found.answered, found.total, set(found.missing)) == (3, 4, {2})
        assert await _has(backend, {f"index-{n}" for n in range(4)})


async def test_without_any_process_searches_and_writes_say_so():
    async with backend_of("127.0.0.1:1") as backend:
        with pytest.raises(ShardUnavailable):
            await search(backend)
        with pytest.raises(Unavailable):
            await backend.get_collection("c", Deadline.after(1))
        (status,) = await backend.describe(Deadline.after(1))
        assert (status.name, status.serving) == ("index-127.0.0.1:1", False)


async def test_a_process_that_comes_up_late_is_found(start):
    (process,) = await start((0, 1))
    await process.stop()
    async with backend_of(process.address) as backend:
        with pytest.raises(ShardUnavailable):
            await search(backend)
        await process.start()
        await uses(backend, 1)


async def test_a_process_that_says_nonsense_is_not_used(start):
    good, bad = await start((0, 1), (3, 2))
    async with backend_of(bad.address, good.address) as backend:
        assert await search(backend) == whole(1)


# -- replicas


async def test_replicas_take_turns_in_every_shard(start):
    processes = await start((0, 2), (1, 2), (0, 2), (1, 2))
    async with backend_of(*addresses_of(processes)) as backend:
        for _ in range(10):
            assert await search(backend) == whole(2)
        assert [process.calls["Search"] for process in processes] == [5, 5, 5, 5]
        assert metric("replicas", shard="1") == 2


async def test_a_replica_that_dies_under_load_costs_no_search(start):
    processes = await start((0, 2), (1, 2), (0, 2), (1, 2))
    async with backend_of(*addresses_of(processes)) as backend:
        stop = asyncio.Event()

        async def keep_searching():
            count = 0
            while not stop.is_set():
                assert await search(backend) == whole(2)
                count += 1
            return count

        clients = [asyncio.create_task(keep_searching()) for _ in range(8)]
        for victim in (processes[0], processes[3]):
            await asyncio.sleep(0.2)
            await victim.stop()
            await asyncio.sleep(0.3)
            calls = victim.calls["Search"]
            await victim.start()
            await eventually(lambda v=victim, n=calls: _is_searched_again(v, n))
        stop.set()
        assert sum(await asyncio.gather(*clients)) > 3 * len(clients)


async def _is_searched_again(process, calls):
    return process.calls["Search"] > calls


@pytest.mark.parametrize("error", [Unavailable("x"), Overloaded("x"), StaleReplica("x")])
async def test_what_one_replica_cannot_answer_another_can(start, error):
    processes = await start((0, 1), (0, 1))
    processes[0].error = error
    async with backend_of(*addresses_of(processes)) as backend:
        before = metric("replica_retries_total")
        for _ in range(4):
            assert await search(backend) == whole(1)
        assert metric("replica_retries_total") > before
        if type(error) is not Unavailable:
            assert processes[0].calls["Search"] == 2, "it is still trusted"


async def test_a_stale_answer_goes_round_the_replicas_once(start):
    processes = await start((0, 1), (0, 1))
    for process in processes:
        process.error = StaleReplica("behind")
    async with backend_of(*addresses_of(processes)) as backend:
        with pytest.raises(StaleReplica):
            await search(backend)
        assert [process.calls["Search"] for process in processes] == [1, 1]


async def test_an_error_of_the_log_is_not_taken_to_other_replicas(start):
    processes = await start((0, 1), (0, 1))
    for process in processes:
        process.error = LogUnavailable("away")
    async with backend_of(*addresses_of(processes)) as backend:
        with pytest.raises(ShardUnavailable, match="away"):
            await search(backend)
        with pytest.raises(LogUnavailable):
            await backend.get_collection("c", Deadline.after(1))
        assert sum(process.calls["Search"] for process in processes) == 1
        assert sorted(process.calls["GetCollection"] > 0 for process in processes) == [False, True]
        assert all(one.serving for one in await backend.describe(Deadline.after(1)))


async def test_an_error_of_the_request_is_not_tried_elsewhere(start):
    processes = await start((0, 1), (0, 1))
    for process in processes:
        process.error = CollectionNotFound("c")
    async with backend_of(*addresses_of(processes)) as backend:
        with pytest.raises(CollectionNotFound):
            await search(backend)
        assert sum(process.calls["Search"] for process in processes) == 1


async def test_a_replica_that_hangs_is_gone_round_and_then_left_alone(start):
    processes = await start((0, 1), (0, 1))
    async with backend_of(*addresses_of(processes)) as backend:
        processes[0].free.clear()
        for _ in range(2):  # one of two begins with the one that hangs
            assert await search(backend, 1.0) == whole(1)

        async def is_known():
            return sum(one.serving for one in await backend.describe(Deadline.after(2))) == 1

        await eventually(is_known)
        calls = processes[0].calls["Search"]
        for _ in range(4):
            assert await search(backend) == whole(1)
        assert processes[0].calls["Search"] == calls
        processes[0].free.set()
        await eventually(lambda: _turns(backend, processes[0], calls))


async def _turns(backend, process, calls):
    await search(backend)
    return process.calls["Search"] > calls


async def test_a_replica_that_is_slow_costs_little_and_keeps_its_trust(start):
    processes = await start((0, 1), (0, 1))
    async with backend_of(*addresses_of(processes)) as backend:
        for pause_s in (0.03, 0.0):  # slow ones, beside which no other seems slow, then fast ones
            for process in processes:
                process.pause_s = pause_s
            for _ in range(64):
                assert await search(backend) == whole(1)
        processes[0].pause_s, hedges = 0.9, metric("hedges_total")
        for _ in range(2):  # one of two begins with the slow one
            assert await search(backend, 30) == whole(1)
        assert metric("hedges_total") == hedges + 1
        assert all(one.serving for one in await backend.describe(Deadline.after(3)))


async def test_watching_ends_when_a_process_was_blamed_just_before(start):
    (process,) = await start((0, 1))
    async with asyncio.timeout(10), backend_of(process.address) as backend:
        await search(backend)
        for replica in backend._topology.replicas:
            replica.blame(Unavailable("away"), 1.0)
            await asyncio.sleep(0)


async def test_a_caller_in_a_hurry_takes_no_trust_away(start):
    (process,) = await start((0, 1))
    async with backend_of(process.address) as backend:
        process.free.clear()
        with pytest.raises(DeadlineExceeded):
            await search(backend, 0.05)
        process.free.set()
        assert (await backend.describe(Deadline.after(1)))[0].serving
        assert await search(backend) == whole(1)


async def test_the_only_replica_is_searched_again_as_soon_as_it_is_back(start):
    processes = await start((0, 2), (1, 2))
    async with backend_of(*addresses_of(processes)) as backend:
        await processes[1].stop()
        assert await search(backend) == ["0 of 2"]
        await processes[1].start()
        await uses(backend, 2)
        processes[1].facts["ready"] = False
        await eventually(lambda: _is(backend, ["0 of 2"]))
        processes[1].facts["ready"] = True
        assert await search(backend) == whole(2), "it is asked before it is given up"


async def _is(backend, ids):
    return await search(backend) == ids


async def test_writes_and_reads_go_to_any_process_of_any_set(start):
    processes = await start((0, 2), (1, 2), (0, 3))
    async with backend_of(*addresses_of(processes)) as backend:
        for _ in range(6):
            await backend.get_collection("c", Deadline.after(1))
        assert [process.calls["GetCollection"] for process in processes] == [2, 2, 2]
        await processes[0].stop()
        processes[1].free.clear()
        for _ in range(3):
            await backend.get_collection("c", Deadline.after(1))
        assert processes[2].calls["GetCollection"] == 5


async def test_the_status_names_every_process(start):
    processes = await start((0, 2), (1, 2), (0, 2), (2, 3))
    processes[2].facts["ready"] = False
    async with backend_of(*addresses_of(processes)) as backend:
        found = {one.name: one for one in await backend.describe(Deadline.after(2))}
        assert set(found) == {"index-0", "index-1", "index-0-r1", "index-2-of-3"}
        assert {name for name, one in found.items() if not one.serving} == {"index-0-r1"}
        assert found["index-0-r1"].detail.startswith("loading, 7 candidates, 1 writes behind")
        assert "shard 1 of 2, replica r" in found["index-1"].detail


# -- addresses


async def test_a_file_of_addresses_is_read_again_and_kept_while_it_is_broken(tmp_path):
    path = tmp_path / "index.json"
    book = AddressBook(["127.0.0.1:1", f"file:{path}"])
    assert await book.look() == ["127.0.0.1:1"]
    path.write_text('["127.0.0.1:2", "127.0.0.1:1"]')
    assert await book.look() == ["127.0.0.1:1", "127.0.0.1:2"]
    for broken in ('["127.', "{}", "[1]", "", "\xff"):
        path.write_text(broken)
        assert await book.look() == ["127.0.0.1:1", "127.0.0.1:2"]
    path.unlink()
    assert await book.look() == ["127.0.0.1:1", "127.0.0.1:2"]
    path.write_text("[]")
    assert await book.look() == ["127.0.0.1:1"]


async def test_a_name_stands_for_all_its_addresses():
    assert await AddressBook(["dns:///localhost:7"]).look() == ["127.0.0.1:7"]
    assert await AddressBook(["dns:///127.0.0.1:7"]).look() == ["127.0.0.1:7"]
    assert await AddressBook(["dns:///no-such-host.invalid:7"]).look() == []
