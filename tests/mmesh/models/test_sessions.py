"""What a session holds between runs, and for how long."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mmesh.models.encoders.lite.sessions import _Idle

PROGRAM = """
from pathlib import Path
import numpy as np
from mmesh.models.encoders.lite import artefacts
from mmesh.models.encoders.lite.sessions import open_session

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

graph = artefacts.DATA / artefacts.IMAGE_GRAPH
session = open_session(graph, "onnxruntime", threads=1, keep_memory=True)
pixels = np.random.default_rng(0).normal(size=(4, 3, 224, 224)).astype(np.float32)
before = session.run({"pixels": pixels})["features"]
kept = resident_bytes()
session._shrink()
print(kept - resident_bytes())
np.testing.assert_array_equal(session.run({"pixels": pixels})["features"], before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells what is resident")
def test_kept_memory_is_given_back_and_the_answers_stay_the_same():
    """In a process of its own: what other tests left behind would be taken and given back, too."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 16 << 20


def test_an_action_waits_for_the_last_of_many_calls():
    done = threading.Event()
    idle = _Idle(done.set, pause_s=0.2)
    begun = before = time.monotonic()
    longest = 0.0  # between two calls, where this process was given no time
    while before < begun + 0.5:
        idle.postpone()
        is_done, now = done.is_set(), time.monotonic()
        longest, before = max(longest, now - before), now
        assert not is_done or longest > 0.1
    assert done.wait(20)
    done.clear()
    idle.postpone()
    assert done.wait(20)
