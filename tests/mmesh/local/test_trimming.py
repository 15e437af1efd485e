"""Freed memory goes back to the system when a process is idle."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import pytest

from mmesh.local.trimming import trim, trim_when_idle

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library cannot trim"
)
SIZE, COUNT = 64 << 10, 1000
HALF = SIZE * COUNT / 2


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def work() -> list[bytearray]:
    """Compute for a while, and leave free blocks between some that are kept."""
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    return [bytearray(b"x" * SIZE) for _ in range(COUNT)][::50]


def test_free_blocks_between_others_are_given_back():
    kept = work()
    before = resident_bytes()
    trim()
    assert before - resident_bytes() > HALF
    assert len(kept) == COUNT / 50


def test_an_idle_process_trims_after_work(eventually):
    trim_when_idle(look_s=0.2)
    kept = work()
    before = resident_bytes()
    eventually(lambda: before - resident_bytes() > HALF, "the memory is given back")
    assert kept
