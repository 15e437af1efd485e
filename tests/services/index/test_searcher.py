"""Natural batches: who shares a call, who runs at once, and what happens to those who leave."""

import asyncio
import threading
import time

import numpy as np
import pytest
from prometheus_client import REGISTRY

from mmesh.content import Modality
from mmesh.errors import Draining, Overloaded
from mmesh.filters import Compare, Operator
from services.index.view.searcher import MAX_BATCH, PendingSearch, Searcher
from services.index.view.view import Found

TEXT = (Modality.TEXT,)


class FakeView:
    """Answers with the queries themselves; may be held up; notes the size of each call."""

    def __init__(self, gains=True, cost_s=0.0):
        self.token, self.cost_s, self._gains = "e:1", cost_s, gains
        self.calls, self.threads, self.go = [], [], threading.Event()
        self.go.set()
        self.failure = None
        self.is_changing = False

    def gains_from_batches(self, modalities):
        return self._gains

    def search(self, queries, modalities, limit, condition, is_reproducible):
        self.calls.append(len(queries))
        self.threads.append(threading.current_thread().name)
        assert self.go.wait(10)
        if self.failure:
            raise self.failure
        return [[Found([str(q[0])], np.ones(1, np.float32), [""])] for q in queries]

    def try_search(self, *arguments):
        return None if self.is_changing else self.search(*arguments)


def work(view, number, rows=1, condition=None, limit=10):
    return PendingSearch(view, np.full((rows, 2), number, np.float32), TEXT, limit, condition)


@pytest.fixture
async def searcher():
    searcher = Searcher(threads=1, max_waiting=100, inline_s=0.001)
    yield searcher
    await searcher.close()


@pytest.fixture
def costs_stay(monkeypatch):
    """Searches cost what a test says, whatever they are measured to take on a busy machine."""
    monkeypatch.setattr("services.index.view.searcher._note_cost", lambda view, cost_s: None)


async def start(searcher, *works):
    tasks = [asyncio.create_task(searcher.search(one)) for one in works]
    await asyncio.sleep(0.05)
    return tasks


async def test_searches_that_come_together_share_a_call_and_get_their_own_hits(searcher):
    view = FakeView()
    results = await asyncio.gather(*(searcher.search(work(view, n)) for n in range(8)))
    assert view.calls == [8]
    assert [r.lists[0][0].ids for r in results] == [[f"{n}.0"] for n in range(8)]
    assert {r.token for r in results} == {"e:1"}


async def test_searches_that_come_a_few_turns_of_the_loop_apart_share_a_call(searcher):
    async def search_after(turns):
        for _ in range(turns):
            await asyncio.sleep(0)
        return await searcher.search(work(view, turns))

    view = FakeView()
    await asyncio.gather(*map(search_after, range(0, 40, 5)))
    assert view.calls == [8]


async def test_a_search_starts_though_others_keep_coming(searcher):
    view = FakeView()
    tasks = []
    while not view.calls and len(tasks) < MAX_BATCH - 1:
        tasks.append(asyncio.create_task(searcher.search(work(view, 0))))
        time.sleep(0.0005)  # noqa: ASYNC251  # the loop is busy with each
        await asyncio.sleep(0)
    assert len(tasks) < MAX_BATCH - 1
    await asyncio.gather(*tasks)


async def test_those_that_come_while_all_threads_are_busy_wait_for_one_and_share_it(searcher):
    view = FakeView()
    view.go.clear()
    tasks = await start(searcher, work(view, 0))
    tasks += await start(searcher, *(work(view, n, rows=n % 3 + 1) for n in range(1, 6)))
    view.go.set()
    results = await asyncio.gather(*tasks)
    assert view.calls == [1, 2 + 3 + 1 + 2 + 3]
    assert [len(r.lists) for r in results] == [1, 2, 3, 1, 2, 3]


async def test_what_differs_or_does_not_gain_runs_by_itself(searcher):
    view, alone = FakeView(), FakeView(gains=False)
    cats = Compare("topic", Operator.EQUAL, "cats")
    works = [work(view, 0), work(view, 1, condition=cats), work(view, 2, limit=5), work(view, 3)]
    await asyncio.gather(*map(searcher.search, works + [work(alone, n) for n in range(3)]))
    assert sorted(view.calls) == [1, 1, 2]
    assert alone.calls == [1, 1, 1]


async def test_a_batch_has_at_most_so_many_queries(searcher):
    view = FakeView()
    await asyncio.gather(*(searcher.search(work(view, n, rows=20)) for n in range(7)))
    assert sum(view.calls) == 140
    assert max(view.calls) <= MAX_BATCH


async def test_short_searches_run_on_the_event_loop_and_others_do_not(searcher, costs_stay):
    short, long = FakeView(cost_s=0.0001), FakeView(cost_s=0.1)
    cats = Compare("topic", Operator.EQUAL, "cats")
    await searcher.search(work(short, 0))
    await asyncio.gather(*(searcher.search(work(short, n)) for n in range(8)))
    await searcher.search(work(short, 0, rows=50))
    await searcher.search(work(short, 0, condition=cats))
    await searcher.search(work(short, 0)._replace(is_reproducible=True))
    await searcher.search(work(long, 0))
    loop = threading.current_thread().name
    assert short.calls == [1, 4, 4, 50, 1, 1]
    assert [name == loop for name in short.threads] == [True, True, True, False, False, False]
    assert long.threads[0] != loop


async def test_half_of_a_short_batch_is_answered_before_the_rest_is_searched(searcher, costs_stay):
    answered, seen = [], []

    class Watching(FakeView):
        def search(self, queries, *others):
            seen.append((len(queries), len(answered)))
            return super().search(queries, *others)

    async def search(number, rows):
        await searcher.search(work(view, number, rows))
        answered.append(number)

    view = Watching(cost_s=0.0001)
    await asyncio.gather(*(search(number, rows) for number, rows in enumerate((1, 1, 3, 2))))
    assert seen == [(5, 0), (2, 3)]
    del seen[:], answered[:]
    await asyncio.gather(*(search(number, 1) for number in range(3)))
    assert seen == [(3, 0)]  # which is too little


async def test_an_error_reaches_those_who_share_the_call_and_nobody_else(searcher):
    view, sound = FakeView(), FakeView()
    view.failure = ValueError("broken")
    works = [work(view, 0), work(view, 1), work(sound, 2)]
    outcomes = await asyncio.gather(*map(searcher.search, works), return_exceptions=True)
    assert [type(o).__name__ for o in outcomes] == ["ValueError", "ValueError", "Searched"]
    view.failure = None
    assert (await searcher.search(work(view, 3))).lists[0][0].ids == ["3.0"]


async def test_a_search_whose_caller_went_away_is_not_run(searcher):
    view = FakeView()
    view.go.clear()
    tasks = await start(searcher, work(view, 0))
    gone, kept = await start(searcher, work(view, 1), work(view, 2))
    gone.cancel()
    view.go.set()
    await asyncio.gather(*tasks, kept)
    assert view.calls == [1, 1]


def observed(of):
    return REGISTRY.get_sample_value(f"mmesh_index_{of}_seconds_count")


async def test_the_time_of_searches_whose_callers_went_away_is_demand_all_the_same(searcher):
    """Or a shard in which each search outlasts its caller would seem idle."""
    view = FakeView()
    view.go.clear()
    searches, waits = observed("search"), observed("queue")
    runs, kept = await start(searcher, work(view, 0, limit=5), work(view, 1))
    (waiting,) = await start(searcher, work(view, 2))
    assert view.calls == [1]
    for gone in (runs, waiting):
        gone.cancel()
    await asyncio.wait([runs, waiting])
    assert (observed("search"), observed("queue")) == (searches, waits + 1)
    view.go.set()
    await kept
    assert view.calls == [1, 1]
    assert (observed("search"), observed("queue")) == (searches + 2, waits + 3)


async def test_too_many_waiting_searches_are_refused():
    searcher = Searcher(threads=1, max_waiting=2, inline_s=0)
    view = FakeView(gains=False)
    view.go.clear()
    tasks = await start(searcher, *(work(view, n) for n in range(2)))
    tasks += await start(searcher, *(work(view, n) for n in range(1)))
    with pytest.raises(Overloaded, match="2 searches wait"):
        await searcher.search(work(view, 9))
    tasks.pop().cancel()
    await asyncio.sleep(0)
    tasks += await start(searcher, work(view, 9))  # who went away is in nobody's way
    view.go.set()
    await asyncio.gather(*tasks)
    await searcher.close()


async def test_a_second_batch_runs_beside_a_long_one_only_where_it_is_worth_a_thread():
    searcher = Searcher(threads=2, max_waiting=100, inline_s=0.001)
    exact, other = FakeView(cost_s=0.02), FakeView(gains=False, cost_s=0.02)
    exact.go.clear()
    tasks = await start(searcher, work(exact, 0))
    tasks += await start(searcher, *(work(exact, n) for n in range(5)), work(other, 0))
    assert (exact.calls, other.calls) == ([1], [1])  # five wait for the first; others need not
    tasks += await start(searcher, *(work(exact, n, rows=10) for n in range(3)))
    assert exact.calls == [1, 35]
    exact.go.set()
    await asyncio.gather(*tasks)
    await searcher.close()


async def test_a_short_search_beside_a_change_of_its_view_waits_on_a_thread(searcher):
    view = FakeView(cost_s=0.0001)
    view.is_changing = True
    await asyncio.gather(*(searcher.search(work(view, n)) for n in range(8)))
    assert view.calls == [8]
    assert threading.current_thread().name not in view.threads
    view.is_changing = False
    view.cost_s = 0.0001
    await searcher.search(work(view, 0))
    assert view.threads[-1] == threading.current_thread().name


@pytest.mark.parametrize("method", ["_start", "_take", "_is_short", "_run_on_thread"])
async def test_a_defect_fails_those_who_wait_and_later_searches_run(searcher, method):
    view = FakeView()

    def broken(*_):
        raise RuntimeError("defect")

    setattr(searcher, method, broken)
    waiting = [searcher.search(work(view, n)) for n in range(3)]
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["defect"] * 3
        delattr(searcher, method)
        assert (await searcher.search(work(view, 3))).lists[0][0].ids == ["3.0"]


async def test_a_search_that_comes_when_the_threads_have_ended_is_an_error():
    searcher = Searcher(threads=1, max_waiting=100, inline_s=0)
    await searcher.close()
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(searcher.search(work(FakeView(), 0)), 5)


async def test_searches_that_a_pool_gives_up_hear_that_the_process_stops():
    searcher = Searcher(threads=2, max_waiting=100, inline_s=0)
    searcher._pool._max_workers = 1
    view = FakeView(gains=False)
    view.go.clear()
    tasks = await start(searcher, *(work(view, n) for n in range(2)))
    searcher._pool.shutdown(wait=False, cancel_futures=True)
    view.go.set()
    async with asyncio.timeout(5):
        first, second = await asyncio.gather(*tasks, return_exceptions=True)
    assert first.token == "e:1"
    assert isinstance(second, Draining)
