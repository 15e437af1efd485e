"""What a worker that crashes costs a run of tests: one failure, told at once. 4 s."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.effort import needs_full_effort, patient

PYTEST = [sys.executable, "-m", "pytest", "-p", "tests.grouping"]
ROOT = Path(__file__).parents[2]
SUITE = """
import os
import pytest

@pytest.mark.parametrize("number", range(40))
def test_free(number, tmp_path_factory):
    crashed = tmp_path_factory.getbasetemp().parent / "crashed"
    if number == 20 and not crashed.exists():
        crashed.touch()
        os.kill(os.getpid(), 9)
"""


@needs_full_effort
def test_a_run_whose_worker_crashes_comes_to_its_end(tmp_path):
    tests = tmp_path / "tests"
    tests.mkdir()
    for name in ("grouping.py", "effort.py"):
        shutil.copy(ROOT / "tests" / name, tests)
    (tests / "test_suite.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 30\naddopts = -p no:asyncio\n")
    ended = subprocess.run(
        [*PYTEST, "-n", "2", "--dist", "loadgroup", "--basetemp", str(tmp_path / "temp")],
        cwd=tmp_path, capture_output=True, text=True, timeout=patient(40),
    )  # fmt: skip
    assert "1 failed, 40 passed" in ended.stdout, ended.stdout + ended.stderr
    told, _, summary = ended.stdout.partition("= FAILURES =")
    assert "FAILED tests/test_suite.py::test_free[20]" in told
    assert "ended with code -9" in told
    assert "crashed while running" in summary
