"""`mmesh up` as a process: how a start that fails or is interrupted ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mmesh.cli.output.waiting import WaitingLine
from tests.effort import patient

COMMAND = [sys.executable, "-c", "from mmesh.cli import main; main()", "up", "--port", "0"]


def descendants(pid: int) -> list[int]:
    found = []
    with suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def is_running(pid: int) -> bool:
    with suppress(OSError):  # it has ended, or does while it is read
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(holds, timeout_s=30.0):
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def starting(tmp_path):
    """Start `mmesh up` and return it once some of its services are there, but not all."""
    command = [*COMMAND, "--data", str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: (tmp_path / "logs" / "encoder.log").exists())
    yield process
    process.kill()
    process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc shows who is left on Linux only")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_signal_ends_a_start_and_all_that_was_started(starting, number, code):  # 1 CPU second
    begun = descendants(starting.pid)
    assert begun
    starting.send_signal(number)
    output, errors = starting.communicate(timeout=patient(30))
    assert starting.returncode == code
    assert "ready" not in output
    assert "Traceback" not in errors
    wait_until(lambda: not any(map(is_running, begun)))


def test_a_model_that_is_not_there_ends_the_start_with_its_log(tmp_path):  # 2 CPU seconds
    command = [*COMMAND, "--data", str(tmp_path), "--encoder", "/no/such/model"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "encoder ended while it started (exit code 1); the end of " in done.stderr
    assert "/no/such/model" in done.stderr
    assert "Traceback" not in done.stderr


def test_lines_about_a_start_come_now_and_then(capsys):
    waiting = WaitingLine(first_line_s=0.0)
    waiting.say("a line")
    waiting.show("encoder (1 s)")
    waiting.show("encoder (1 s)")
    waiting.show("")
    assert (
        capsys.readouterr().err == "a line\nwaiting for encoder (1 s)\nwaiting for encoder (1 s)\n"
    )
