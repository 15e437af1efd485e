"""Batches on devices that run when they are let, one task and one real event loop."""

import asyncio
import random
import time

import pytest

from mmesh.errors import (
    DeadlineExceeded,
    Draining,
    InputTooLong,
    InternalError,
    MmeshError,
    Overloaded,
)
from mmesh.serving import supervision
from mmesh.serving.batching import lane
from mmesh.serving.batching.backlog import BatchShape, Priority, Work
from mmesh.serving.batching.batcher import Batcher, BatchLimits
from mmesh.serving.batching.coalesce import Ticket
from mmesh.serving.batching.lane import TooLarge
from tests.effort import patient

FOREVER = float("inf")


class Device:
    """Runs batches when it is let; remembers what it collated and ran."""

    def __init__(self, fits=100, passes=1):
        self.fits = fits
        self.passes = passes
        self.collated, self.batches, self.failures = [], [], []
        self.free = asyncio.Event()
        self.free.set()

    def collate(self, items):
        self.collated.append(list(items))
        return list(items)

    def run(self, batch):
        self.batches.append(batch)
        return asyncio.ensure_future(self._run(batch))

    async def _run(self, batch):
        await self.free.wait()
        if "bad" in batch:
            raise ValueError("bad batch")
        if len(batch) > self.fits:
            raise TooLarge
        return [f"{item}!" for item in batch]


def limits(max_items=64, max_cost=1024, pass_cost=100, **more):
    return BatchLimits(BatchShape(max_items, max_cost, pass_cost), **more)


def put(batcher, item, group="text", cost=1, priority=Priority.INTERACTIVE, expires_at=FOREVER):
    ticket = Ticket(expires_at)
    batcher.put(Work(item, group, cost, ticket, priority))
    return ticket


def bulk(batcher, item, **more):
    return put(batcher, item, priority=Priority.BULK, **more)


async def outcomes(*tickets):
    """Return the results, or the errors, of all tickets."""
    async with asyncio.timeout(patient(5)):
        found = await asyncio.gather(*(t.outcome for t in tickets), return_exceptions=True)
    return [getattr(one, "result", one) for one in found]


async def until(condition):
    async with asyncio.timeout(patient(5)):
        while not condition():  # noqa: ASYNC110  # a plain flag
            await asyncio.sleep(0.001)


class Busy:
    """Holds a device with a batch of its own while the body submits work."""

    def __init__(self, batcher, device):
        self.batcher, self.device = batcher, device

    async def __aenter__(self):
        self.device.free.clear()
        self.ticket = put(self.batcher, "busy", group="none")
        await until(lambda: self.device.batches)

    async def __aexit__(self, *_):
        self.device.free.set()
        await outcomes(self.ticket)


async def test_a_device_whose_passes_all_fail_for_some_time_is_lost(monkeypatch):
    monkeypatch.setattr(lane, "FAILING_S", 0.0)
    async with Batcher([Device(), Device()], limits(max_items=1)) as batcher:

        async def run(*items):
            for item in items:
                await outcomes(put(batcher, item))

        await run(*["bad"] * 2 * (lane.MOST_FAILURES - 1))
        assert not batcher.is_failing
        await run("good", "good", *["bad"] * 4 * lane.MOST_FAILURES)
        assert batcher.is_failing
        await run(*["good"] * 4)
        assert not batcher.is_failing


# -- what shares a batch


async def test_what_comes_while_the_device_is_busy_is_one_batch():
    device = Device()
    async with Batcher([device], limits()) as batcher:
        async with Busy(batcher, device):
            tickets = [put(batcher, item) for item in "abc"]
        assert await outcomes(*tickets) == ["a!", "b!", "c!"]
        assert tickets[0].outcome.result().batch_size == 3
    assert device.batches == [["busy"], ["a", "b", "c"]]


async def test_groups_do_not_share_a_batch():
    device = Device()
    async with Batcher([device], limits()) as batcher:
        async with Busy(batcher, device):
            tickets = [put(batcher, "a"), put(batcher, "p", group="image"), put(batcher, "b")]
        await outcomes(*tickets)
    assert device.batches == [["busy"], ["a", "b"], ["p"]]


async def test_a_batch_is_bounded_by_its_padded_cost():
    device = Device()
    async with Batcher([device], limits(max_items=10, max_cost=100)) as batcher:
        async with Busy(batcher, device):
            short = [put(batcher, f"s{n}", cost=10) for n in range(4)]
            long = put(batcher, "long", cost=90)
        await outcomes(*short, long)
    assert device.batches == [["busy"], ["s0", "s1", "s2", "s3"], ["long"]]


async def test_padding_dearer_than_a_pass_is_not_made():
    device = Device()
    async with Batcher([device], limits(pass_cost=5)) as batcher:
        async with Busy(batcher, device):
            tickets = [put(batcher, cost, cost=cost) for cost in (10, 30, 12, 33)]
        await outcomes(*tickets)
    assert device.batches == [["busy"], [10, 12], [30, 33]]


async def test_an_item_dearer_than_a_batch_runs_alone():
    device = Device()
    async with Batcher([device], limits(max_cost=10)) as batcher:
        assert await outcomes(put(batcher, "huge", cost=1000)) == ["huge!"]


async def test_what_is_due_first_goes_first():
    device, now = Device(), time.monotonic()
    async with Batcher([device], limits(max_items=1)) as batcher:
        async with Busy(batcher, device):
            tickets = [put(batcher, n, expires_at=now + 9 - n) for n in (1, 3, 2)]
        await outcomes(*tickets)
    assert device.batches[1:] == [[3], [2], [1]]


# -- queries and bulk work


async def test_queries_go_before_bulk_work_that_came_first():
    device = Device()
    async with Batcher([device], limits()) as batcher:
        async with Busy(batcher, device):
            tickets = [bulk(batcher, "bulk"), put(batcher, "query")]
        await outcomes(*tickets)
    assert device.batches == [["busy"], ["query"], ["bulk"]]


async def test_bulk_work_goes_first_once_in_a_while():
    device = Device()
    async with Batcher([device], limits(max_items=1, bulk_patience_s=0.0)) as batcher:
        async with Busy(batcher, device):
            tickets = [bulk(batcher, "bulk"), put(batcher, "query")]
        await outcomes(*tickets)
    assert device.batches == [["busy"], ["bulk"], ["query"]]


async def test_a_query_overtakes_bulk_work_that_is_ready():
    device = Device()
    async with Batcher([device], limits(max_items=2, max_cost=2)) as batcher:
        device.free.clear()
        tickets = [bulk(batcher, f"b{n}") for n in range(6)]
        await until(lambda: len(device.collated) == 2)  # one runs, the next is ready
        tickets.append(put(batcher, "query"))
        device.free.set()
        await outcomes(*tickets)
    assert device.batches[:3] == [["b0", "b1"], ["query"], ["b2", "b3"]]


# -- passes that overlap


async def test_a_device_that_queues_passes_is_given_the_next_while_one_runs():
    device = Device(passes=2)
    async with Batcher([device], limits(max_items=2, max_cost=2)) as batcher:
        device.free.clear()
        tickets = [bulk(batcher, f"b{n}") for n in range(6)]
        await until(lambda: len(device.batches) == 2)
        await until(lambda: len(device.collated) == 3)  # the one after is ready, no more
        await asyncio.sleep(0.01)
        assert device.batches == [["b0", "b1"], ["b2", "b3"]]
        device.free.set()
        assert await outcomes(*tickets) == [f"b{n}!" for n in range(6)]


async def test_a_batch_that_fills_while_another_runs_is_launched_behind_it():
    device = Device(passes=2)
    async with Batcher([device], limits(max_items=2, max_cost=2)) as batcher:
        device.free.clear()
        tickets = [bulk(batcher, "b0")]
        await until(lambda: len(device.batches) == 1)
        tickets += [bulk(batcher, "b1")]  # no whole batch: it may get company
        await asyncio.sleep(0.01)
        assert len(device.batches) == 1
        tickets += [bulk(batcher, "b2")]
        await until(lambda: device.batches == [["b0"], ["b1", "b2"]])
        device.free.set()
        await outcomes(*tickets)


async def test_a_query_waits_for_one_pass_only_while_queries_come():
    device = Device(passes=2)
    async with Batcher([device], limits(max_items=2, max_cost=2)) as batcher:
        await outcomes(put(batcher, "query"))
        device.free.clear()
        tickets = [bulk(batcher, f"b{n}") for n in range(4)]
        await until(lambda: len(device.batches) == 2)
        tickets.append(put(batcher, "next query"))
        await asyncio.sleep(0.01)
        assert len(device.batches) == 2
        device.free.set()
        await outcomes(*tickets)
    assert ["next query"] in device.batches[2:4]


async def test_of_two_passes_under_way_each_is_halved_where_it_does_not_fit():
    device = Device(fits=1, passes=2)
    async with Batcher([device], limits(max_items=2, max_cost=2)) as batcher:
        tickets = [bulk(batcher, f"b{n}") for n in range(8)]
        assert await outcomes(*tickets) == [f"b{n}!" for n in range(8)]


@pytest.mark.parametrize("passes", [1, 2])
async def test_whoever_waits_for_a_defective_device_is_told(passes):
    device = Device(passes=passes)
    async with Batcher([device], limits(max_items=1, max_cost=1)) as batcher:
        device.run = lambda batch: 1 // 0
        tickets = [bulk(batcher, n) for n in range(3)]
    assert all(isinstance(error, MmeshError) for error in await outcomes(*tickets))


async def test_a_pace_learnt_from_single_queries_is_not_that_of_full_batches():
    """A pass of one query takes nearly what one of a hundred takes: that much must be known."""
    device = Device()
    async with Batcher([device], limits(max_items=512, max_cost=4096, pass_cost=1000)) as batcher:
        async with Busy(batcher, device):
            await asyncio.sleep(0.05)  # 20 a second: 1,000 of a pass in 0.05 s
        async with Busy(batcher, device):
            ticket = put(batcher, "a", cost=2000, expires_at=time.monotonic() + 5)
        assert await outcomes(ticket) == ["a!"]


# -- bulk work beside queries


async def test_bulk_work_runs_in_small_batches_while_queries_come():
    device = Device()
    async with Batcher([device], limits()) as batcher:
        await outcomes(put(batcher, "query", cost=10))  # now the pace is known
        async with Busy(batcher, device):
            tickets = [bulk(batcher, n, cost=10) for n in range(40)]
        await outcomes(*tickets)
    assert max(len(batch) for batch in device.batches) < 40


# -- ready ahead


async def test_a_whole_batch_is_made_ready_while_another_runs_but_no_part_of_one():
    device = Device()
    async with Batcher([device], limits(max_items=2, max_cost=2)) as batcher:
        async with Busy(batcher, device):
            pass
        device.free.clear()
        tickets = [put(batcher, n) for n in range(5)]
        await until(lambda: len(device.collated) == 3)
        assert device.batches == [["busy"], [0, 1]]
        assert device.collated == [["busy"], [0, 1], [2, 3]]
        tickets.append(put(batcher, 5))  # in time for the batch that was not yet whole
        device.free.set()
        await outcomes(*tickets)
    assert device.batches == [["busy"], [0, 1], [2, 3], [4, 5]]


async def test_what_is_cancelled_when_it_is_ready_never_runs():
    device = Device()
    async with Batcher([device], limits(max_items=2, max_cost=2)) as batcher:
        device.free.clear()
        tickets = [put(batcher, n) for n in range(6)]
        await until(lambda: len(device.collated) == 2)
        tickets[2].outcome.cancel()
        device.free.set()
        await outcomes(tickets[0], tickets[1], *tickets[3:])
    assert device.batches == [[0, 1], [3], [4, 5]]


# -- several devices


async def test_devices_share_what_waits():
    devices = [Device(), Device()]
    async with Batcher(devices, limits(max_items=1)) as batcher:
        for device in devices:
            device.free.clear()
        tickets = [put(batcher, n) for n in range(2)]
        await until(lambda: all(device.batches for device in devices))
        for device in devices:
            device.free.set()
        assert sorted(await outcomes(*tickets)) == ["0!", "1!"]


# -- failures


async def test_a_failed_batch_fails_its_callers_and_the_next_one_runs():
    device = Device()
    async with Batcher([device], limits()) as batcher:
        async with Busy(batcher, device):
            tickets = [put(batcher, "bad"), put(batcher, "a")]
        assert all(isinstance(error, ValueError) for error in await outcomes(*tickets))
        assert await outcomes(put(batcher, "b")) == ["b!"]


async def test_a_batch_that_does_not_fit_is_run_in_halves():
    device = Device(fits=2)
    async with Batcher([device], limits()) as batcher:
        for _ in range(2):
            async with Busy(batcher, device):
                tickets = [put(batcher, n, cost=100) for n in range(4)]
            assert await outcomes(*tickets) == ["0!", "1!", "2!", "3!"]
    assert device.batches[1:4] == [[0, 1, 2, 3], [0, 1], [2, 3]]
    assert device.batches[5:] == [[0, 1], [2, 3]]  # learnt


async def test_halves_that_do_not_fit_either_are_refused_and_a_single_input_for_good():
    device = Device(fits=1)
    async with Batcher([device], limits()) as batcher:
        async with Busy(batcher, device):
            tickets = [put(batcher, n) for n in range(3)]
        refused = await outcomes(*tickets)
        assert [type(one) for one in refused] == [Overloaded, Overloaded, str]
        assert refused[0].retry_after_s > 0
        device.fits = 0
        (refused,) = await outcomes(put(batcher, "huge"))
        assert isinstance(refused, InputTooLong)
        device.fits = 1
        assert await outcomes(put(batcher, "small")) == ["small!"]


# -- admission


async def test_a_full_queue_is_refused_with_the_pause_that_the_backlog_takes():
    device = Device()
    async with Batcher([device], limits(max_waiting_cost=10)) as batcher:
        async with Busy(batcher, device):
            await asyncio.sleep(0.01)  # so that the pace is no more than 100 a second
        async with Busy(batcher, device):
            ticket = put(batcher, "a", cost=8)
            with pytest.raises(Overloaded) as caught:
                batcher.reserve(8, Priority.INTERACTIVE, FOREVER)
            assert caught.value.retry_after_s >= 0.05
        await outcomes(ticket)
        batcher.reserve(8, Priority.INTERACTIVE, FOREVER)


async def test_room_is_reserved_until_it_is_released():
    async with Batcher([Device()], limits(max_waiting_cost=10)) as batcher:
        batcher.reserve(8, Priority.INTERACTIVE, FOREVER)
        with pytest.raises(Overloaded):
            batcher.reserve(8, Priority.INTERACTIVE, FOREVER)
        batcher.release(8, Priority.INTERACTIVE)
        batcher.reserve(80, Priority.INTERACTIVE, FOREVER)  # nothing waits


async def test_bulk_work_leaves_room_for_queries():
    async with Batcher([Device()], limits(max_waiting_cost=10, bulk_share=0.5)) as batcher:
        batcher.reserve(3, Priority.BULK, FOREVER)
        with pytest.raises(Overloaded):
            batcher.reserve(3, Priority.BULK, FOREVER)
        batcher.reserve(7, Priority.INTERACTIVE, FOREVER)


async def test_work_that_could_only_be_late_is_refused_at_once():
    device = Device()
    async with Batcher([device], limits(pass_cost=0)) as batcher:
        async with Busy(batcher, device):
            await asyncio.sleep(0.05)  # a pace of 20 a second
        async with Busy(batcher, device):
            ticket = put(batcher, "a", cost=20)
            soon = time.monotonic() + 0.5
            with pytest.raises(Overloaded) as caught:
                batcher.reserve(20, Priority.INTERACTIVE, soon)
            assert caught.value.retry_after_s > 0.5
            batcher.reserve(20, Priority.INTERACTIVE, soon + 3600)
        await outcomes(ticket)


async def test_queries_are_not_refused_for_bulk_work_that_lets_them_go_first():
    device = Device()
    async with Batcher([device], limits()) as batcher:
        async with Busy(batcher, device):
            await asyncio.sleep(0.01)
        async with Busy(batcher, device):
            ticket = bulk(batcher, "bulk", cost=10_000)
            batcher.reserve(1, Priority.INTERACTIVE, time.monotonic() + 30)
        await outcomes(ticket)


# -- callers that go away


async def test_cancelled_work_is_forgotten_at_once():
    device = Device()
    async with Batcher([device], limits()) as batcher:
        async with Busy(batcher, device):
            cancelled = put(batcher, "cancelled", cost=50)
            assert batcher.waiting_cost == 50
            cancelled.outcome.cancel()
            await asyncio.sleep(0)
            assert batcher.waiting_cost == 0
        assert await outcomes(put(batcher, "next")) == ["next!"]
    assert device.batches == [["busy"], ["next"]]


async def test_expired_work_is_never_run():
    device = Device()
    async with Batcher([device], limits()) as batcher:
        async with Busy(batcher, device):
            late = put(batcher, "late", expires_at=time.monotonic())
            tickets = [late, put(batcher, "a")]
        found = await outcomes(*tickets)
    assert isinstance(found[0], DeadlineExceeded)
    assert device.batches == [["busy"], ["a"]]


async def test_whatever_happens_every_ticket_gets_its_outcome():
    """Random work and callers on two devices that run out of memory and fail now and then."""
    rng = random.Random(7)
    devices = [Device(fits=3), Device(fits=5)]
    async with Batcher(devices, limits(max_items=8, max_cost=200, pass_cost=10)) as batcher:
        tickets = []
        for number in range(600):
            item = "bad" if rng.random() < 0.02 else number
            expires_at = time.monotonic() + rng.choice([0.0005, 0.01, 60])
            cost, priority = rng.randint(1, 60), rng.choice(list(Priority))
            tickets.append(put(batcher, item, rng.choice("ab"), cost, priority, expires_at))
            if rng.random() < 0.1:
                rng.choice(tickets).outcome.cancel()
            if rng.random() < 0.2:
                await asyncio.sleep(0)
        async with asyncio.timeout(patient(10)):
            await asyncio.wait([ticket.outcome for ticket in tickets])
        assert batcher.waiting_cost == 0
        assert len({id(ticket) for ticket in tickets if not ticket.outcome.cancelled()}) > 300
    ran = [item for device in devices for batch in device.batches for item in batch]
    assert max(ran.count(number) for number in range(600)) <= 2


# -- the end


async def test_closing_finishes_what_waits_and_refuses_what_comes(caplog):
    batcher = Batcher([Device()], limits())
    async with batcher:
        waiting = put(batcher, "a")
    assert await outcomes(waiting) == ["a!"]
    assert not caplog.records  # the end of its tasks is no failure
    with pytest.raises(Draining):
        batcher.reserve(1, Priority.INTERACTIVE, FOREVER)
    assert isinstance((await outcomes(put(batcher, "b")))[0], Draining)


class Panic(BaseException):
    """As what a library in Rust raises."""


@pytest.mark.parametrize("method", ["collate", "run", "_run"])
@pytest.mark.parametrize("error", [ZeroDivisionError(), Panic(), asyncio.CancelledError()])
async def test_after_a_defect_of_its_device_a_lane_begins_again(error, method):
    device = Device()

    def fail(batch):
        delattr(device, method)
        raise error

    async def fail_later(batch):
        fail(batch)

    setattr(device, method, fail_later if method == "_run" else fail)
    async with Batcher([device], limits(max_items=1)) as batcher:
        failed, *others = await outcomes(*[put(batcher, item) for item in "abc"])
        assert isinstance(failed, InternalError | ZeroDivisionError)
        assert others == ["b!", "c!"]


async def test_health_hears_of_a_lane_that_fails_again_and_again():
    device = Device()
    device.run = lambda batch: 1 // 0
    async with Batcher([device], limits(max_items=1)) as batcher:
        tickets = [put(batcher, n) for n in range(5)]
        await until(lambda: supervision.unwell() == ["device lane"])
        assert all(isinstance(error, InternalError) for error in await outcomes(*tickets))
    assert not supervision.unwell()
