"""Batches of all ingests share a bounded memory, in the order in which they come."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesh.errors import Overloaded
from mmesh.serving.request_room import SMALL_BYTES
from services.gateway.writes.byte_window import ByteWindow

LARGE = 2 * SMALL_BYTES


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_batches_are_let_in_as_far_as_there_is_room_and_in_their_order():
    window = ByteWindow(2 * LARGE, 10 * LARGE)
    came: list[int] = []

    async def come(number: int, size: int) -> None:
        await window.take(size)
        came.append(number)

    async with asyncio.TaskGroup() as group:
        for number, size in enumerate((LARGE, LARGE, 2 * LARGE, LARGE)):
            group.create_task(come(number, size))
        await settle()
        assert came == [0, 1]
        window.give_back(LARGE)
        await settle()
        assert came == [0, 1]  # the last would find room, but has come later
        window.give_back(LARGE)
        await settle()
        assert came == [0, 1, 2]
        window.give_back(2 * LARGE)


async def test_one_that_finds_nothing_is_let_in_whatever_its_size_and_small_ones_always():
    window = ByteWindow(LARGE, LARGE)
    assert await window.take(9 * LARGE) == 9 * LARGE
    assert await window.take(SMALL_BYTES) == 0


async def test_more_than_may_wait_is_refused():
    window = ByteWindow(LARGE, LARGE)
    await window.take(LARGE)
    waiting = asyncio.create_task(window.take(LARGE))
    await settle()
    with pytest.raises(Overloaded, match="are under way"):
        await window.take(LARGE)
    window.give_back(LARGE)
    assert await waiting == LARGE


@given(st.lists(st.tuples(st.integers(0, 4 * LARGE), st.booleans(), st.booleans()), max_size=20))
def test_nothing_is_left_whatever_is_cancelled_and_when(steps):
    async def run() -> None:
        window = ByteWindow(3 * LARGE, 100 * LARGE)
        tasks, taken = [], []
        for size, cancels, gives_back in steps:
            task = asyncio.create_task(window.take(size))
            tasks.append(task)
            await settle()
            if cancels:
                tasks[len(tasks) // 2].cancel()
            if gives_back and tasks[0].done():
                first = tasks.pop(0)
                if not first.cancelled():
                    window.give_back(first.result())
            if not cancels:
                await settle()
        for task in tasks:
            taken += await asyncio.gather(task, return_exceptions=True)
            window.give_back(taken[-1] if isinstance(taken[-1], int) else 0)
        assert (window.held_bytes, window.waiting_bytes) == (0, 0)

    asyncio.run(run())
