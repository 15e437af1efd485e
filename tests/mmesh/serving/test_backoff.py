"""Pauses that double, by key."""

import pytest

from mmesh.serving.backoff import Backoff, Pauses


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def backoff(clock):
    return Backoff(Pauses(first_s=1, longest_s=8), clock)


def test_pauses_double_up_to_the_longest_however_many_failures_there_were():
    pauses = Pauses(first_s=1, longest_s=8)
    for failures, full_s in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (5000, 8)]:
        drawn = [pauses.after(failures) for _ in range(100)]
        assert all(full_s / 2 <= pause <= full_s for pause in drawn)
        assert len(set(drawn)) > 1, "without jitter all would come back at once"


def test_a_key_that_failed_waits_alone(backoff, clock):
    backoff.failed("poisoned")
    assert not backoff.is_due("poisoned")
    assert backoff.is_due("other")
    clock.now_s += 1
    assert backoff.is_due("poisoned")


def test_failures_in_a_row_wait_longer_and_a_success_forgets_them(backoff, clock):
    assert [backoff.failed("a") for _ in range(4)] == [1, 2, 3, 4]
    clock.now_s += 3.9
    assert not backoff.is_due("a")
    clock.now_s += 4.1
    assert backoff.is_due("a")
    backoff.succeeded("a")
    assert backoff.failed("a") == 1


def test_keys_that_exist_no_more_are_forgotten(backoff):
    for key in "abc":
        backoff.failed(key)
    backoff.keep(["b"])
    assert [backoff.is_due(key) for key in "abc"] == [True, False, True]
    assert backoff.failed("a") == 1
