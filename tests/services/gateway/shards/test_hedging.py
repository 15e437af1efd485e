"""The second call: when it is made, how often, and whose answer counts."""

from __future__ import annotations

import asyncio
import math

import pytest

from mmesh.errors import Unavailable
from services.gateway.shards.hedging import (
    LEAST_S,
    MOST_COLLECTIONS,
    MOST_SAVED,
    RENEWED_EVERY,
    HedgeDelay,
    HedgeDelays,
    Race,
)


def delay_after(*seconds: float) -> HedgeDelay:
    delay = HedgeDelay()
    for one in seconds:
        delay.note(one)
    return delay


def test_patience_is_what_95_of_100_calls_take():
    assert delay_after(*([0.1] * 90 + [0.9] * 10) * 16).patience_s == 0.9
    assert delay_after(*([0.1] * 97 + [0.9] * 3) * 16).patience_s == 0.1


def test_nobody_is_asked_twice_before_there_is_something_to_go_by():
    assert delay_after(*[0.1] * (RENEWED_EVERY - 1)).patience_s == math.inf


def test_fast_calls_are_not_slow():
    assert delay_after(*[1e-4] * 64).patience_s == LEAST_S


def test_one_call_in_twenty_is_made_twice_at_most():
    delay, twice = delay_after(*[0.1] * 1000), 0
    while delay.patience_s < math.inf:
        delay.spend()
        twice += 1
    assert twice == MOST_SAVED
    for _ in range(1000):
        delay.note(0.1)
        if delay.patience_s < math.inf:
            delay.spend()
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


def test_each_collection_has_a_delay_of_its_own_and_not_all_are_kept():
    delays = HedgeDelays()
    slow, fast = delays.of("slow"), delays.of("fast")
    for _ in range(64):
        slow.note(0.3)
        fast.note(0.01)
    assert (delays.of("slow").patience_s, delays.of("fast").patience_s) == (0.3, 0.01)
    for number in range(MOST_COLLECTIONS):
        delays.of("fast")
        delays.of(f"collection {number}")
    assert delays.of("fast") is fast
    assert delays.of("slow") is not slow


async def test_a_call_that_others_cut_off_has_failed():
    async with Race[str]() as race:
        race.enter(answer(60, "cut"))
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        with pytest.raises(Unavailable, match="cut off"):
            await race.first(1)


async def test_a_defect_is_raised_and_no_call_is_left():
    async def broken() -> str:
        raise TypeError("a defect")

    async with Race[str]() as race:
        race.enter(answer(60, "slow"))
        race.enter(broken())
        with pytest.raises(TypeError):
            await race.first(1)
    assert len(asyncio.all_tasks()) == 1
