"""The second call: when it is made, how often, and whose answer counts."""

from __future__ import annotations

import asyncio
import math

import pytest

from mmesh.errors import Unavailable
from services.gateway.shards.hedging import LEAST_S, MOST_SAVED, RENEWED_EVERY, Pace, Race


def paced(*seconds: float) -> Pace:
    pace = Pace()
    for one in seconds:
        pace.note(one)
    return pace


def test_patience_is_what_95_of_100_calls_take():
    assert paced(*([0.1] * 90 + [0.9] * 10) * 16).patience_s == 0.9
    assert paced(*([0.1] * 97 + [0.9] * 3) * 16).patience_s == 0.1


def test_nobody_is_asked_twice_before_there_is_something_to_go_by():
    assert paced(*[0.1] * (RENEWED_EVERY - 1)).patience_s == math.inf


def test_fast_calls_are_not_slow():
    assert paced(*[1e-4] * 64).patience_s == LEAST_S


def test_one_call_in_twenty_is_made_twice_at_most():
    pace, twice = paced(*[0.1] * 1000), 0
    while pace.patience_s < math.inf:
        pace.spend()
        twice += 1
    assert twice == MOST_SAVED
    for _ in range(1000):
        pace.note(0.1)
        if pace.patience_s < math.inf:
            pace.spend()
            twice += 1
    assert twice == MOST_SAVED + 50


async def answer(seconds: float, what: str) -> str:
    await asyncio.sleep(seconds)
    if what == "fails":
        raise Unavailable("away")
    return what


async def test_the_first_answer_counts_and_ends_the_others():
    async with Race[str]() as race:
        race.enter(answer(60, "slow"))
        assert await race.first(0.01) is None
        race.enter(answer(0, "fast"))
        assert await race.last() == "fast"
    assert len(asyncio.all_tasks()) == 1


async def test_a_failure_is_told_at_once_and_an_answer_still_counts_afterwards():
    async with Race[str]() as race:
        race.enter(answer(0.05, "good"))
        race.enter(answer(0, "fails"))
        with pytest.raises(Unavailable):
            await race.first(1)
        assert await race.last() == "good"


async def test_when_all_fail_the_last_error_is_raised():
    async with Race[str]() as race:
        race.enter(answer(0, "fails"))
        with pytest.raises(Unavailable):
            await race.last()
