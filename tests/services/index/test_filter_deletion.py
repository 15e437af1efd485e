"""Deletion by filter: what it counts when it is interrupted, repeated, or done twice at a time."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from mmesh.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    HistoryLost,
    LogUnavailable,
    RequestIdReused,
)
from mmesh.filters import Compare, Operator
from services.index import filter_deletion
from services.index.filter_deletion import FilterDeletion, remembered_places
from services.index.log.committer import Committer

EVEN = Compare("kind", Operator.EQUAL, "even")
ODD = Compare("kind", Operator.EQUAL, "odd")


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    monkeypatch.setattr(filter_deletion, "PAGE_ROWS", 3)


@pytest.fixture
def put(writer, row, upsert):
    """Write candidates whose attribute says whether their number is even."""

    def write(numbers):
        kinds = ("even", "odd")
        rows = [row(f"{n:02}", attributes=f'{{"kind": "{kinds[n % 2]}"}}') for n in numbers]
        writer.write(upsert(rows))

    return write


class Failing(Committer):
    """A committer that loses its log after some writes."""

    def __init__(self, log, writes):
        super().__init__(log, 10)
        self.left = writes

    async def write(self, write, rows):
        self.left -= 1
        if self.left < 0:
            raise LogUnavailable("gone")
        return await super().write(write, rows)


async def deleted(log, condition, request_id, committer=None, places=None):
    async with AsyncExitStack() as stack:
        committer = await stack.enter_async_context(committer or Committer(log, 10))
        places = remembered_places() if places is None else places
        deletion = FilterDeletion(log, committer, asyncio.to_thread, lambda: None, places)
        return await deletion.run(log.collection("c"), condition, request_id)


async def test_a_deletion_touches_nothing_of_another_history(writer, put, copies):
    """The log is put back between two steps; other writes have the numbers that were read."""

    class RollingBack(Committer):
        async def write(self, write, rows):
            if write.read_at.seq > 20:
                await asyncio.to_thread(copies.put_back, copy)
                await asyncio.to_thread(put, range(18, 28))
            return await super().write(write, rows)

    put(range(2))
    copy = copies.take()
    put(range(2, 20))
    with pytest.raises(HistoryLost):
        await deleted(writer.log, EVEN, "", RollingBack(writer.log, 10))
    assert writer.ids() == [f"{n:02}" for n in (0, 1, *range(18, 28))]


async def test_a_repetition_gets_the_first_answer_and_spares_what_came_since(writer, put):
    put(range(20))
    first = await deleted(writer.log, EVEN, "once")
    assert (first.count, first.text) == (10, writer.log.collection("c").token)
    put([2, 4])
    assert await deleted(writer.log, EVEN, "once") == first
    assert writer.ids() == sorted(["02", "04", *(f"{n:02}" for n in range(1, 20, 2))])
    assert (await deleted(writer.log, EVEN, "another")).count == 2
    with pytest.raises(RequestIdReused):
        await deleted(writer.log, ODD, "once")


async def test_a_repetition_goes_on_after_an_interruption_and_counts_all(writer, put):
    put(range(20))
    with pytest.raises(LogUnavailable):
        await deleted(writer.log, EVEN, "once", Failing(writer.log, writes=3))
    assert 0 < 20 - len(writer.ids()) < 10
    put([0, 18])  # written since: it stays
    answer = await deleted(writer.log, EVEN, "once")
    kept = [n for n in range(20) if n % 2 or n in (0, 18)]
    assert writer.ids() == [f"{n:02}" for n in kept]
    assert answer.count == 9  # 18 had not been reached when it was written anew
    assert await deleted(writer.log, EVEN, "once") == answer


class Cut:
    """A log that is read a few pages at a time, as by calls whose deadlines are short."""

    def __init__(self, log, pages):
        self._log, self.left, self.read = log, pages, []

    def __getattr__(self, name):
        return getattr(self._log, name)

    def page(self, name, after, *arguments, **options):
        if not self.left:
            raise DeadlineExceeded("cut")
        self.left -= 1
        self.read.append(after)
        return self._log.page(name, after, *arguments, **options)


async def test_calls_that_are_cut_go_on_where_they_were_and_end(writer, put):
    put(range(20))
    places, read = remembered_places(), []
    while True:
        log = Cut(writer.log, pages=2)
        try:
            answer = await deleted(log, EVEN, "once", places=places)
            break
        except DeadlineExceeded:
            read += log.read
    assert answer.count == 10
    assert read == sorted(set(read))
    assert not places


async def test_a_place_in_a_history_that_was_lost_is_forgotten(writer, put, copies):
    put(range(20))
    copy, places = copies.take(), remembered_places()
    with pytest.raises(DeadlineExceeded):
        await deleted(Cut(writer.log, pages=3), EVEN, "once", places=places)
    copies.put_back(copy)
    assert (await deleted(writer.log, EVEN, "once", places=places)).count == 10
    assert writer.ids() == [f"{n:02}" for n in range(1, 20, 2)]


async def test_two_processes_that_do_the_same_at_once_count_each_candidate_once(
    writer, put, open_log, log_url
):
    put(range(40))
    logs = [writer.log, open_log(log_url).log]
    answers = await asyncio.gather(*(deleted(log, EVEN, "once") for log in logs))
    assert [answer.count for answer in answers] == [20, 20]
    assert len(writer.ids()) == 20


async def test_a_filter_that_holds_for_nothing_is_answered_and_remembered(writer, put):
    put([1, 3])
    nothing = await deleted(writer.log, EVEN, "once")
    assert nothing.count == 0
    put([2])
    assert await deleted(writer.log, EVEN, "once") == nothing
    assert (await deleted(writer.log, EVEN, "")).count == 1


async def test_a_collection_that_is_replaced_meanwhile_ends_it(writer, put):
    put(range(4))
    row = writer.log.collection("c")
    writer.log.delete_collection("c")
    writer.create("c")
    async with Committer(writer.log, 10) as committer:
        deletion = FilterDeletion(writer.log, committer, asyncio.to_thread, lambda: None, {})
        with pytest.raises(CollectionNotFound):
            await deletion.run(row, EVEN, "once")
