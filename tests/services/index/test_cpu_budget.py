"""A budget of CPU time holds whatever the work costs."""

from hypothesis import given
from hypothesis import strategies as st

from services.index.upkeep.cpu_budget import FIRST_S, CpuBudget

COSTS = st.lists(st.floats(0, 2), min_size=1, max_size=50)


class Process:
    """A process whose CPU seconds are told."""

    def __init__(self):
        self.used_s = 0.0

    def __call__(self):
        return self.used_s


def run(costs_s, work_s, share=0.01):
    """Offer pieces of work in turns until each has run; yield what it took and what was used."""
    process, taken_s = Process(), 0.0
    budget = CpuBudget(share, process)
    for cost_s in costs_s:
        while not budget.is_full:
            process.used_s += work_s
        budget.spend(cost_s)
        taken_s += cost_s
        yield taken_s, process.used_s


@given(COSTS)
def test_work_is_at_most_one_piece_ahead_of_its_share(costs_s):
    for taken_s, used_s in run(costs_s, work_s=0.5):
        assert taken_s <= 0.01 * used_s + max(costs_s) + 1e-9


@given(st.lists(st.floats(0, FIRST_S), min_size=1, max_size=50))
def test_work_that_takes_as_little_as_expected_never_is_ahead(costs_s):
    for taken_s, used_s in run(costs_s, work_s=0.5):
        assert taken_s <= 0.01 * used_s + 1e-9


def test_a_long_rest_saves_up_no_more_than_one_piece():
    process = Process()
    budget = CpuBudget(0.01, process)
    process.used_s = 10.0
    assert budget.is_full
    budget.spend(1.0)
    process.used_s = 1e6
    assert budget.is_full
    budget.spend(1.0)
    assert not budget.is_full
    process.used_s += 99.0
    assert not budget.is_full
    process.used_s += 2.0
    assert budget.is_full


def test_dear_work_has_its_turns_beside_cheap_work():
    """Both wait for a full bucket, so whoever comes then may begin."""
    process = Process()
    budget, ran = CpuBudget(0.01, process), {2.0: 0, 0.1: 0}
    for turn in range(20_000):
        process.used_s += 1.0
        cost_s = 2.0 if turn % 10 == 0 else 0.1
        if budget.is_full:
            ran[cost_s] += 1
            budget.spend(cost_s)
    assert ran[2.0] >= 20
    assert 0.9 * 200 <= 2.0 * ran[2.0] + 0.1 * ran[0.1] <= 202
