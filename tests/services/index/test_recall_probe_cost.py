"""Recall probes take little, and hurt nobody, whatever goes wrong."""

import asyncio

import numpy as np
import pytest

from mmesh.content import Modality
from services.index import metrics
from services.index.segments import exact
from services.index.segments.delta import Delta
from services.index.segments.ids import hashes_of
from services.index.upkeep.cpu_budget import CpuBudget
from services.index.upkeep.recall_probe import MAX_WAITING, RecallProbe
from services.index.view.searcher import PendingSearch, Searcher
from services.index.view.view import Found
from tests.services.index.probing import (
    ASKED,
    DIM,
    IDS,
    TEXT,
    VECTORS,
    Probed,
    Room,
    always_full,
    outcomes,
    value,
    view_of,
    write,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    exact.single_threaded()  # others wait for each other by spinning, which a busy machine feels


# -- what it may take


class Clocks:
    """CPU seconds: the process's, as the test tells, and a probe's, of a fixed cost a piece."""

    def __init__(self, piece_s=0.0):
        self.used_s, self._cpu_s, self._piece_s = 0.0, 0.0, piece_s

    def process(self):
        return self.used_s

    def thread(self):
        self._cpu_s += self._piece_s
        return self._cpu_s


async def test_it_takes_no_more_than_its_share_of_the_cpu(until, flat):
    clocks, spent = Clocks(piece_s=0.25), metrics.recall_probe_cpu_seconds_total
    searcher, view, before_s = Searcher(1, 100, 0.001), view_of(flat), value(spent)
    options = {"budget": CpuBudget(0.01, clocks.process), "cpu_s": clocks.thread}
    async with RecallProbe(1.0, searcher, lambda view: True, **options):
        probed = Probed(searcher, until, None)
        for number in range(300):
            clocks.used_s += 1.0
            await probed.search(view)
            await until(lambda count=number: sum(probed.outcomes.values()) == count + 1)
            taken_s = round(value(spent) - before_s, 9)  # of a sum that began before the test
            assert taken_s <= 0.01 * clocks.used_s + (0.5 if clocks.used_s < 100 else 0)
        assert probed.outcomes["compared"] == 6  # each takes half a second
        assert set(probed.outcomes) == {"compared", "budget"}
    await searcher.close()


async def test_it_waits_while_live_searches_would(probed, flat):
    view = view_of(flat)
    probed.room.is_there = False
    await probed.search(view)
    while probed.room.looks < 3:  # noqa: ASYNC110  # nothing tells but looking
        await asyncio.sleep(0.001)
    assert probed.outcomes == {}
    probed.room.is_there = True
    await probed.done(compared=1)


async def test_a_probe_that_finds_no_room_is_given_up(until, flat):
    searcher = Searcher(1, 100, 0.001)
    room = Room(searcher)
    room.is_there = False
    async with RecallProbe(1.0, room, lambda view: True, budget=always_full(), looks=2):
        probed = Probed(searcher, until, room)
        await probed.search(view_of(flat))
        await probed.done(busy=1)
        assert room.looks == 2
    await searcher.close()


async def test_a_bounded_number_of_probes_waits(probed, flat):
    view = view_of(flat)
    probed.room.is_there = False
    await probed.search(view)
    while not probed.room.looks:  # noqa: ASYNC110  # until it has been taken
        await asyncio.sleep(0.001)
    for _ in range(MAX_WAITING + 3):
        await probed.search(view)
    assert probed.outcomes == {"busy": 3}
    probed.room.is_there = True
    await probed.done(busy=3, compared=MAX_WAITING + 1)


async def test_a_searcher_has_room_while_a_thread_is_free():
    searcher = Searcher(threads=1, max_waiting=100, inline_s=0)
    assert searcher.has_room
    task = asyncio.create_task(searcher.search(PendingSearch(view_of(), ASKED[:1], TEXT, 1, None)))
    await asyncio.sleep(0)
    assert not searcher.has_room
    await task
    assert searcher.has_room
    await searcher.close()


class Untouchable:
    """A view that can be searched and nothing else."""

    cost_s, token = 0.0, "e:1"

    def gains_from_batches(self, modalities):
        return True

    def search(self, queries, modalities, limit, condition, is_reproducible):
        return [[Found(["a"], np.ones(1, np.float32), [""])] for _ in queries]

    try_search = search


async def test_a_search_that_is_not_chosen_costs_one_look_at_chance():
    looked = []

    def chance():
        looked.append(None)
        return 0.002

    searcher = Searcher(1, 100, 0.001)
    async with RecallProbe(0.002, searcher, lambda view: True, budget=None, chance=chance):
        before = outcomes()
        for _ in range(50):
            await searcher.search(PendingSearch(Untouchable(), ASKED[:1], TEXT, 10, None))
        assert len(looked) == 50
        assert outcomes() == before
    await searcher.close()


async def test_without_a_share_no_search_is_looked_at():
    searcher = Searcher(1, 100, 0.001)
    async with RecallProbe(0.0, searcher, lambda view: True):
        assert searcher.watcher is None
    await searcher.close()


# -- what goes wrong


async def test_a_collection_that_is_dropped_meanwhile_leaves_no_series(until, flat):
    searcher, views = Searcher(1, 100, 0.001), {"dropped"}
    room = Room(searcher)
    room.is_there = False
    has = {"has": lambda view: view.name in views}
    async with RecallProbe(1.0, room, **has, budget=always_full()):
        probed = Probed(searcher, until, room, name="dropped")
        await probed.search(view_of(flat, name="dropped"))
        views.clear()
        room.is_there = True
        await probed.done(gone=1)
    names = {one.labels["collection"] for one in metrics.recall_wanted_total.collect()[0].samples}
    assert "dropped" not in names
    await searcher.close()


async def test_an_error_of_a_probe_is_counted_and_the_next_goes_well(probed, error):
    class Broken(Delta):
        def search_exactly(self, *_):
            raise error

    view = view_of()
    write(view, IDS[:3], VECTORS[:3])
    partition = view.partitions[Modality.TEXT]
    kept, partition.blocks = partition.blocks, (Broken(DIM, 3),)
    partition.blocks[0].append_many(IDS[:3], hashes_of(IDS[:3]), [""] * 3, VECTORS[:3])
    assert (await probed.search(view)).ids
    await probed.done(failed=1)
    partition.blocks = kept
    await probed.search(view)
    await probed.done(failed=1, compared=1)
    assert probed.recall(1) == 1.0


async def test_a_search_that_cannot_be_watched_is_answered(probed):
    class Broken(Delta):
        def alive_bits(self):
            raise MemoryError

    view = view_of()
    block = Broken(DIM, 3)
    block.append_many(IDS[:3], hashes_of(IDS[:3]), [""] * 3, VECTORS[:3])
    view.partitions[Modality.TEXT].blocks = (block,)
    assert len((await probed.search(view)).ids) == 3
    await probed.done(failed=1)
