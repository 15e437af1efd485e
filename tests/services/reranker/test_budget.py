"""What a budget pays for, and how large rounds become."""

from mmesh.serving.deadline import Deadline
from services.reranker.budget import Budget, PairRate


def test_without_limits_everything_is_affordable():
    assert list(Budget().affordable(500, [10, 0, 9999])) == [True] * 3


def test_candidates_are_counted_from_the_first_that_is_paid_for():
    budget = Budget(candidates=2, image_tokens=100)
    assert list(budget.affordable(0, [200, 50, 60, 50, 0])) == [False, True, False, True, False]


def test_seconds_bring_the_deadline_forward_but_never_put_it_off():
    latest = Deadline.after(10)
    assert Budget().deadline(latest) == latest
    assert Budget(seconds=1).deadline(latest).remaining() <= 1
    assert Budget(seconds=99).deadline(latest).remaining() <= 10


def test_rounds_double_while_there_is_plenty_of_time():
    pace, sizes = PairRate(8), []
    for _ in range(3):
        sizes.append(pace.next_size(60.0))
        pace.note(sizes[-1], 0.01 * sizes[-1])
    assert sizes == [8, 16, 32]


def test_rounds_shrink_near_the_end_and_stop_when_not_one_more_fits():
    pace = PairRate(8)
    pace.note(8, 0.8)
    assert [pace.next_size(seconds) for seconds in (4.0, 1.0, 0.15, 0.1)] == [16, 5, 1, 0]
