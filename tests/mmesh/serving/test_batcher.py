import asyncio
import time

import pytest

from mmesh.errors import DeadlineExceeded, Draining, Overloaded
from mmesh.serving.batcher import Batcher, BatchLimits, Priority, Work
from mmesh.serving.coalesce import Coalescer


class Device:
    """Runs batches one at a time, when it is let; remembers what it ran."""

    def __init__(self):
        self.batches = []
        self.free = asyncio.Event()
        self.free.set()

    async def run(self, items):
        self.batches.append(list(items))
        await self.free.wait()
        if "bad" in items:
            raise ValueError("bad batch")
        return [f"{item}!" for item in items]


def work(item, group="text", cost=1, **more):
    return Work(item, group, cost, **more)


async def started(batcher, device, *works):
    """Submit works while the device is busy, then let it go; return their outcomes."""
    device.free.clear()
    busy = asyncio.create_task(batcher.submit(work("busy", group="none")))
    await until(lambda: device.batches)
    tasks = [asyncio.create_task(batcher.submit(one)) for one in works]
    await asyncio.sleep(0)
    device.free.set()
    await busy
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    return outcomes


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # a plain flag
            await asyncio.sleep(0.001)


async def test_what_comes_while_the_device_is_busy_is_one_batch():
    device = Device()
    async with Batcher(device.run, BatchLimits()) as batcher:
        done = await started(batcher, device, work("a"), work("b"), work("c"))
    assert device.batches == [["busy"], ["a", "b", "c"]]
    assert [(d.result, d.batch_size) for d in done] == [("a!", 3), ("b!", 3), ("c!", 3)]


async def test_groups_do_not_share_a_batch():
    device = Device()
    async with Batcher(device.run, BatchLimits()) as batcher:
        await started(batcher, device, work("a"), work("p", group="image"), work("b"))
    assert device.batches == [["busy"], ["a", "b"], ["p"]]


async def test_a_batch_is_bounded_by_its_padded_cost():
    device = Device()
    limits = BatchLimits(max_items=10, max_cost=100)
    async with Batcher(device.run, limits) as batcher:
        short = [work(f"s{n}", cost=10) for n in range(4)]
        await started(batcher, device, short[0], work("long", cost=90), *short[1:])
    assert device.batches == [["busy"], ["s0", "s1", "s2", "s3"], ["long"]]


async def test_an_item_dearer_than_a_batch_runs_alone():
    device = Device()
    async with Batcher(device.run, BatchLimits(max_cost=10)) as batcher:
        assert (await batcher.submit(work("huge", cost=1000))).result == "huge!"


async def test_queries_go_before_bulk_work_that_came_first():
    device = Device()
    async with Batcher(device.run, BatchLimits()) as batcher:
        bulk = work("bulk", priority=Priority.BULK)
        await started(batcher, device, bulk, work("query"))
    assert device.batches == [["busy"], ["query"], ["bulk"]]


async def test_bulk_work_that_has_waited_too_long_goes_first():
    device = Device()
    async with Batcher(device.run, BatchLimits(bulk_patience_s=0.0)) as batcher:
        bulk = work("bulk", priority=Priority.BULK)
        await started(batcher, device, bulk, work("query"))
    assert device.batches == [["busy"], ["bulk"], ["query"]]


async def test_a_failed_batch_fails_its_callers_and_the_next_one_runs():
    device = Device()
    async with Batcher(device.run, BatchLimits()) as batcher:
        outcomes = await started(batcher, device, work("bad"), work("a"))
        assert all(isinstance(outcome, ValueError) for outcome in outcomes)
        assert (await batcher.submit(work("b"))).result == "b!"


async def test_a_full_queue_is_refused_with_a_pause():
    device = Device()
    async with Batcher(device.run, BatchLimits(max_waiting_cost=10)) as batcher:
        outcomes = await started(batcher, device, work("a", cost=8), work("b", cost=8))
    assert outcomes[0].result == "a!"
    assert isinstance(outcomes[1], Overloaded)
    assert outcomes[1].retry_after_s > 0


async def test_bulk_work_leaves_room_for_queries():
    device = Device()
    limits = BatchLimits(max_waiting_cost=10, bulk_share=0.5)
    async with Batcher(device.run, limits) as batcher:
        bulk = [work(f"bulk{n}", cost=3, priority=Priority.BULK) for n in range(2)]
        outcomes = await started(batcher, device, *bulk, work("query", cost=7))
    assert [type(outcome).__name__ for outcome in outcomes] == ["Done", "Overloaded", "Done"]


async def test_cancelled_work_is_never_run():
    device = Device()
    async with Batcher(device.run, BatchLimits()) as batcher:
        device.free.clear()
        busy = asyncio.create_task(batcher.submit(work("busy")))
        await until(lambda: device.batches)
        cancelled = asyncio.create_task(batcher.submit(work("cancelled")))
        await asyncio.sleep(0)
        cancelled.cancel()
        device.free.set()
        await busy
        await batcher.submit(work("next"))
        assert device.batches == [["busy"], ["next"]]
        assert batcher.waiting_cost == 0


async def test_expired_work_is_never_run():
    device = Device()
    async with Batcher(device.run, BatchLimits()) as batcher:
        late = work("late", expires_at=time.monotonic() - 1)
        outcomes = await started(batcher, device, late, work("a"))
    assert isinstance(outcomes[0], DeadlineExceeded)
    assert device.batches == [["busy"], ["a"]]


async def test_closing_finishes_what_waits_and_refuses_what_comes():
    device = Device()
    batcher = Batcher(device.run, BatchLimits())
    async with batcher:
        waiting = asyncio.create_task(batcher.submit(work("a")))
        await asyncio.sleep(0)
    assert (await waiting).result == "a!"
    with pytest.raises(Draining):
        await batcher.submit(work("b"))


async def test_the_same_work_at_a_time_is_done_once():
    runs = []

    async def compute():
        runs.append(1)
        await asyncio.sleep(0.01)
        return "done"

    coalescer = Coalescer()
    outcomes = await asyncio.gather(*(coalescer.run("key", compute) for _ in range(5)))
    assert sorted(outcomes) == [("done", False), *[("done", True)] * 4]
    assert len(runs) == 1
    assert await coalescer.run("key", compute) == ("done", False)


async def test_shared_work_goes_on_while_one_caller_is_left():
    release, cancelled = asyncio.Event(), []

    async def compute():
        try:
            await release.wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise
        return "done"

    coalescer = Coalescer()
    first = asyncio.create_task(coalescer.run("key", compute))
    second = asyncio.create_task(coalescer.run("key", compute))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0.01)
    assert not cancelled
    release.set()
    assert await second == ("done", True)


async def test_shared_work_ends_with_its_last_caller():
    cancelled = asyncio.Event()

    async def compute():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    coalescer = Coalescer()
    tasks = [asyncio.create_task(coalescer.run("key", compute)) for _ in range(2)]
    await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    async with asyncio.timeout(5):
        await cancelled.wait()
