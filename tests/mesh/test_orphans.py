"""No process outlives the one that started it, whichever of a mesh is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from mmesh import Candidate, Client, Content
from tests.effort import needs_full_effort

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc shows who is left")

UP = [sys.executable, "-c", "from mmesh.cli import main; main()", "up", "--port", "0"]
SERVICE = """
import asyncio, os, signal, subprocess, sys, time
from mmesh.serving.host import run_service
from mmesh.serving.settings import ServiceSettings

async def loading():
    if sys.argv[1] == "stuck":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(os.getpid(), flush=True)
    time.sleep(600)

settings = ServiceSettings(stop_with_parent=True, drain_s=0, grace_s=0)
run_service(loading(), settings)
"""
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
time.sleep(600)
"""


def descendants(pid: int) -> list[int]:
    found = []
    with suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def name_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@pytest.fixture(scope="module")
def up(tmp_path_factory, run_index_command):
    """A mesh of two shards by `mmesh up`, with the index's builders at work: 4 CPU seconds."""
    data = tmp_path_factory.mktemp("orphans")
    command = [*UP, "--data", str(data), "--shards", "2", "--reranker", "none"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    address = process.stdout.readline().split()[-1]
    with Client(address) as client:
        client.create_collection("c")
        found = [Candidate(f"id{n}", Content.of(f"text {n}")) for n in range(40)]
        client.upsert_candidates("c", found)
    run_index_command("index", "compact", "c", "--data", data)
    yield process
    for pid in [process.pid, *descendants(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def run_index_command(command_as_program, tmp_path_factory):
    def run(*arguments):
        code, _, errors = command_as_program(
            *arguments, env={}, folder=tmp_path_factory.getbasetemp()
        )
        assert code == 0, errors

    return run


def test_the_builder_of_a_killed_index_process_ends(up, eventually):
    (index,) = [pid for pid in descendants(up.pid) if name_of(pid) == "mmesh index-0"]
    children = descendants(index)
    assert children
    os.kill(index, signal.SIGKILL)
    eventually(lambda: not any(map(is_running, children)), "its builder is gone")


def test_nothing_is_left_of_a_mesh_whose_first_process_was_killed(up, eventually):
    begun = descendants(up.pid)
    named = {name_of(pid) for pid in begun}
    assert {"mmesh encoder", "mmesh gateway", "mmesh index-1"} <= named
    up.kill()
    eventually(lambda: not any(map(is_running, begun)), "all are gone")


@pytest.mark.parametrize(  # 1 and 6 s of waiting
    "state", ["loading", pytest.param("stuck", marks=needs_full_effort)]
)
def test_a_service_that_loads_or_is_stuck_ends_with_its_parent(state, eventually):
    command = [sys.executable, "-c", PARENT, SERVICE, state]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        service = int(parent.stdout.readline())
        parent.kill()
    eventually(lambda: not is_running(service), "the service is gone")
