"""The watchdog says what computes on an event loop for too long, and nothing else."""

import asyncio
import contextlib
import logging
import time

import pytest
from prometheus_client import REGISTRY

from mmesh.serving.watchdog import LoopWatchdog


@pytest.fixture
async def watch():
    """Start a watchdog; it ends with the test."""
    tasks = []

    def start(limit_s=0.05):
        watchdog = LoopWatchdog(limit_s)
        tasks.append(asyncio.create_task(watchdog.run()))
        return watchdog

    yield start
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def compute(cpu_s):
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def late(bound):
    return REGISTRY.get_sample_value("mmesh_loop_blocked_seconds_bucket", {"le": bound}) or 0


async def test_what_blocks_the_loop_is_named(watch, caplog):
    watchdog = watch()
    await asyncio.sleep(0.05)
    compute(0.3)
    await asyncio.sleep(0.05)
    assert any(held > 0.2 for held in watchdog.blocked)
    [record] = [r for r in caplog.records if r.getMessage() == "event loop blocked"]
    assert record.levelno == logging.ERROR
    assert "in compute" in record.where


async def test_many_short_callbacks_do_not_block(watch):
    watchdog = watch()
    end = time.thread_time() + 0.3
    while time.thread_time() < end:
        compute(0.002)
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    assert not watchdog.blocked


async def test_a_machine_busy_elsewhere_is_not_blamed_on_the_loop(watch):
    watchdog = watch()
    await asyncio.sleep(0.05)
    time.sleep(0.3)  # noqa: ASYNC251  # as if other processes had the CPU
    await asyncio.sleep(0.05)
    assert not watchdog.blocked


async def test_without_a_limit_lateness_is_measured_only(watch, caplog):
    watchdog = watch(0.0)
    await asyncio.sleep(0)
    before, slow = late("+Inf"), late("+Inf") - late("0.1")
    compute(0.3)
    while late("+Inf") == before:  # noqa: ASYNC110  # nothing announces it
        await asyncio.sleep(0.01)
    assert late("+Inf") - late("0.1") == slow + 1
    assert not watchdog.blocked
    assert not caplog.records
