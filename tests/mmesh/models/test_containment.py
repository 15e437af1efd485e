"""Failures of libraries that a thread's future cannot carry."""

from __future__ import annotations

import asyncio
import concurrent.futures

import pytest

from mmesh.content import Content
from mmesh.errors import InternalError
from mmesh.models.containment import contained
from mmesh.models.content_threads import ContentThreads
from tests.effort import patient


class Panic(BaseException):
    """As what a library in Rust raises."""


BAD = [StopIteration(), Panic(), SystemExit(1), concurrent.futures.CancelledError()]


@pytest.mark.parametrize("error", BAD, ids=repr)
async def test_what_a_future_cannot_carry_reaches_the_caller_of_a_thread(
    error: BaseException,
) -> None:
    def fail() -> None:
        raise error

    threads = ContentThreads(1, "t")
    async with asyncio.timeout(patient(5)):
        with pytest.raises(InternalError) as caught:
            await threads.run([Content.of("text")], fail)
    assert caught.value.__cause__ is error
    threads.close()


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()], ids=repr)
def test_other_failures_stay_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)), contained():
        raise error
