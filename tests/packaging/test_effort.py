"""The numbers of repetitions of the tests can be chosen, all at once or one alone."""

import dataclasses

import pytest

from tests.effort import FAST, FULL, chosen


def test_the_environment_chooses():
    assert chosen({}) == FAST
    assert chosen({"MMESH_TEST_EFFORT": "full"}) == FULL
    one = chosen({"MMESH_TEST_EFFORT": "full", "MMESH_TEST_CRASH_ROUNDS": "1000"})
    assert one == dataclasses.replace(FULL, crash_rounds=1000)
    with pytest.raises(ValueError, match="use one of fast, full"):
        chosen({"MMESH_TEST_EFFORT": "some"})


def test_the_full_effort_tries_nothing_less_often():
    fast, full = dataclasses.asdict(FAST), dataclasses.asdict(FULL)
    assert all(full[name] >= fast[name] for name in fast if name != "pause_s")
