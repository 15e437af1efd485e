"""Admission of callers: nobody waits for more than its share, whatever the others ask for."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmesh.errors import Overloaded
from services.gateway.fair_gate import Admission, FairGate

CAPACITY = 8.0


class Work:
    """Turns that are held until the test ends them; in the order in which they were let in."""

    def __init__(self, gate: FairGate) -> None:
        self._gate = gate
        self.inside: list[tuple[str, float]] = []
        self.order: list[tuple[str, float]] = []
        self._ends: list[asyncio.Event] = []

    def ask(self, caller: str, cost: float = 1.0) -> asyncio.Task[None]:
        return asyncio.create_task(self._hold(caller, cost))

    async def _hold(self, caller: str, cost: float) -> None:
        async with self._gate.turn(caller, cost):
            end = asyncio.Event()
            self.inside.append((caller, cost))
            self.order.append((caller, cost))
            self._ends.append(end)
            await end.wait()

    async def end_first(self) -> None:
        """End the turn that was let in first."""
        self._ends.pop(0).set()
        self.inside.pop(0)
        await settle()


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_what_fits_goes_in_at_once_and_the_rest_waits() -> None:
    work = Work(FairGate(3))
    tasks = [work.ask("a") for _ in range(5)]
    await settle()
    assert len(work.inside) == 3
    for left in (3, 3, 2, 1, 0):
        await work.end_first()
        assert len(work.inside) == left
    await asyncio.gather(*tasks)


async def test_who_comes_late_stands_behind_no_backlog_of_others() -> None:
    work = Work(FairGate(1))
    tasks = [work.ask("greedy") for _ in range(100)]
    await settle()
    tasks.append(work.ask("polite"))
    await settle()
    await work.end_first()
    assert work.order == [("greedy", 1.0), ("polite", 1.0)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_is_dearer_than_all_there_is_goes_in_alone() -> None:
    work = Work(FairGate(4))
    tasks = [work.ask("a"), work.ask("b", 100.0), work.ask("c")]
    await settle()
    assert work.inside == [("a", 1.0)]
    await work.end_first()
    assert work.inside == [("b", 100.0)]
    await work.end_first()
    assert work.inside == [("c", 1.0)]
    await work.end_first()
    await asyncio.gather(*tasks)


async def test_who_goes_away_takes_no_room_before_or_after_its_turn() -> None:
    gate = FairGate(1)
    work = Work(gate)
    tasks = [work.ask("a") for _ in range(4)]
    await settle()
    for number in (1, 0, 2):  # one that waits, the one inside, and the one that was let in for it
        tasks[number].cancel()
        await settle()
    assert work.order == [("a", 1.0)] * 3
    tasks[3].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(5), gate.turn("b"):
        pass


async def test_costs_of_any_fraction_add_up_to_the_whole_room() -> None:
    gate = FairGate(3)
    for number in range(1, 200):
        async with gate.turn("a", number / 7):
            pass
    async with asyncio.timeout(5), gate.turn("b", 3):
        pass


async def test_what_hangs_does_not_close_the_gate() -> None:
    work = Work(FairGate(2, working_s=0.05))
    tasks = [work.ask("hung", 2.0) for _ in range(2)]
    async with asyncio.timeout(5):
        while len(work.inside) < 2:  # noqa: ASYNC110  # the gate tells nobody
            await asyncio.sleep(0.01)
    for _ in range(2):
        await work.end_first()
    await asyncio.gather(*tasks)
    async with asyncio.timeout(5):
        await asyncio.sleep(0.1)  # what was given back is not given back again
    more = [work.ask("a") for _ in range(3)]
    await settle()
    assert len(work.inside) == 2
    for task in more:
        task.cancel()
    await asyncio.gather(*more, return_exceptions=True)


COSTS = st.sampled_from([1.0, 1.0, 1.0625, 2.0, 5.0, 50.0])
ASKED = st.lists(st.tuples(st.sampled_from("abcd"), COSTS), min_size=1, max_size=60)


@settings(deadline=None, max_examples=50)
@given(ASKED)
def test_callers_that_all_wait_get_the_same_but_for_their_dearest_turns(
    asked: list[tuple[str, float]],
) -> None:
    asyncio.run(_check_shares(asked))


async def _check_shares(asked: list[tuple[str, float]]) -> None:
    work = Work(FairGate(CAPACITY))
    before = work.ask("before", CAPACITY)
    await settle()
    tasks = [work.ask(*one) for one in asked]
    await settle()
    del work.order[0]
    await work.end_first()
    await before
    while work.inside:
        assert sum(min(cost, CAPACITY) for _, cost in work.inside) <= CAPACITY
        await work.end_first()
    await asyncio.gather(*tasks)
    assert Counter(work.order) == Counter(asked)
    got: Counter[str] = Counter()
    left = Counter(caller for caller, _ in asked)
    most = {one: max(min(k, CAPACITY) for c, k in asked if c == one) for one in left}
    for caller, cost in work.order:
        got[caller] += min(cost, CAPACITY)  # type: ignore[assignment]  # a sum of costs
        left[caller] -= 1
        waiting = [one for one in left if left[one]]
        for one, other in product(waiting, waiting):
            assert got[one] - got[other] <= most[one] + most[other]


@settings(deadline=None, max_examples=50)
@given(ASKED, st.sets(st.integers(0, 59)), st.integers(0, 9))
def test_whoever_goes_away_all_others_get_their_turn_and_no_room_is_lost(
    asked: list[tuple[str, float]], leaving: set[int], ended: int
) -> None:
    asyncio.run(_check_leaving(asked, leaving, ended))


async def _check_leaving(asked: list[tuple[str, float]], leaving: set[int], ended: int) -> None:
    gate, done = FairGate(CAPACITY), []

    async def hold(number: int) -> None:
        async with gate.turn(*asked[number]):
            await asyncio.sleep(0)
            done.append(number)

    tasks = [asyncio.create_task(hold(n)) for n in range(len(asked))]
    for _ in range(ended):
        await asyncio.sleep(0)
    for number in leaving & set(range(len(asked))):
        tasks[number].cancel()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert set(done) >= set(range(len(asked))) - leaving
    async with asyncio.timeout(1), gate.turn("last", CAPACITY):
        pass


def test_a_caller_alone_may_have_all_the_room_and_no_more() -> None:
    admission = Admission(4)
    for _ in range(4):
        admission.enter("greedy", 1)
    with pytest.raises(Overloaded):
        admission.enter("greedy", 1)
    admission.leave("greedy", 1)
    admission.enter("greedy", 1)


def test_who_has_less_than_its_share_is_let_in_however_full_it_is() -> None:
    admission = Admission(8)
    admission.enter("greedy", 8)
    for _ in range(4):
        admission.enter("polite", 1)
    with pytest.raises(Overloaded):
        admission.enter("polite", 1)
    with pytest.raises(Overloaded):
        admission.enter("greedy", 1)
    admission.enter("batches", 4)  # its first call
    for caller in ("batches", "another"):  # twice as much as there is room for is too much for all
        with pytest.raises(Overloaded):
            admission.enter(caller, 4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 4)), max_size=80))
def test_who_has_nothing_here_is_refused_only_where_twice_the_room_is_taken(
    steps: list[tuple[str, int]],
) -> None:
    admission, here = Admission(10), []
    for caller, number in steps:
        has_none = caller not in {one for one, _ in here}
        try:
            admission.enter(caller, number)
        except Overloaded:
            assert not has_none or admission.total + number > 20
            for one in [entry for entry in here if entry[0] == caller]:
                here.remove(one)
                admission.leave(*one)
        else:
            here.append((caller, number))
        assert admission.total == sum(n for _, n in here) <= 20
