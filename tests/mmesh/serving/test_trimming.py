"""Freed memory goes back to the system when a process is idle, and now and then when it is not."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmesh.serving.trimming import trim
from tests.effort import patient

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


PROCESS = """
import sys, time
from mmesh.serving.trimming import trim_now_and_then
from tests.mmesh.serving.test_trimming import HALF, resident_bytes, work
look_s, busy_s, limit_s = map(float, sys.argv[1:])
trim_now_and_then(look_s, busy_s)
kept = work()
before = resident_bytes()
until = time.monotonic() + limit_s
while before - resident_bytes() < HALF:
    assert time.monotonic() < until, "the memory is not given back"
    if busy_s > limit_s:  # else it is never idle
        time.sleep(0.02)
"""


@pytest.mark.parametrize(
    "busy_s", [pytest.param(1e6, id="an idle process"), pytest.param(0.2, id="one never idle")]
)
def test_memory_goes_back_after_work(busy_s):
    # In a process of its own: others' threads are at work in this one.
    arguments = [str(number) for number in (0.2, busy_s, patient(30))]
    subprocess.run(
        [sys.executable, "-c", PROCESS, *arguments], check=True, cwd=Path(__file__).parents[3]
    )


KEEPER = """
from mmesh.serving.trimming import keep_freed, trim
from resource import RUSAGE_SELF, getrusage
from tests.mmesh.serving.test_trimming import resident_bytes
import sys

size = 57 << 20
if sys.argv[1] == "keep":
    keep_freed()
bytearray(b"x" * size)
before, resident = getrusage(RUSAGE_SELF).ru_minflt, resident_bytes()
for _ in range(3):
    bytearray(b"x" * size)
print(getrusage(RUSAGE_SELF).ru_minflt - before)
trim()
if sys.argv[1] == "keep":
    assert resident - resident_bytes() > size
"""


def test_large_blocks_are_kept_between_calls_until_they_are_trimmed():
    def faults(what: str) -> int:
        program = [sys.executable, "-c", KEEPER, what]
        return int(subprocess.run(program, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < faults("not") / 10


THREAD = """
import mmesh.serving.libraries
import threading
from mmesh.serving.trimming import keep_freed, trim
from tests.mmesh.serving.test_trimming import COUNT, HALF, SIZE, resident_bytes

keep_freed()
idle = resident_bytes()
made = []
thread = threading.Thread(target=lambda: made.append([bytearray(SIZE) for _ in range(COUNT)]))
thread.start()
thread.join()
made.clear()
full = resident_bytes()
trim()
assert resident_bytes() - idle < HALF / 4, (idle, full, resident_bytes())
"""


def test_what_a_thread_had_taken_at_most_is_given_back_as_well():
    """malloc_trim leaves the top of all arenas but the first one as it is."""
    subprocess.run([sys.executable, "-c", THREAD], check=True, timeout=patient(20))
