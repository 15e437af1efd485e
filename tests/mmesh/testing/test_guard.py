"""Servers of a test run that is killed end, and leave nothing; costs about 2 s for each server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmesh.testing.postgres import postgres_path
from mmesh.testing.s3 import weed_path
from tests.effort import patient

POSTGRES = """
import sys
from mmesh.testing.postgres import PostgresServer
with PostgresServer(fsync=False) as server:
    print(server.pid, server._folder, flush=True)
    sys.stdin.read()
"""
S3 = """
import pathlib, sys
from mmesh.testing.s3 import S3Server
with S3Server(pathlib.Path(sys.argv[1])) as server:
    print(server._process.pid, "/none", flush=True)
    sys.stdin.read()
"""
SERVERS = [
    pytest.param(POSTGRES, id="postgresql", marks=pytest.mark.skipif(
        postgres_path() is None, reason="no PostgreSQL server; install one with `make setup`")),
    pytest.param(S3, id="weed", marks=pytest.mark.skipif(
        weed_path() is None, reason="no S3 server; install it with `make setup-storage`")),
]  # fmt: skip
pytestmark = pytest.mark.processes


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def guards_of(pid: int) -> list[str]:
    """Return the command lines of guards that a process has started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [child for task in tasks for child in task.read_text().split()]
    lines = [Path(f"/proc/{child}/cmdline").read_text() for child in children]
    return [line for line in lines if "guard.py" in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("program", SERVERS)
def test_a_server_ends_with_the_process_that_started_it(program, number, tmp_path, eventually):
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        pid, folder = starter.stdout.readline().split()
        assert is_running(int(pid))
        starter.send_signal(number)
        starter.wait(patient(10))
    eventually(lambda: not is_running(int(pid)), "the server has ended")
    eventually(lambda: not Path(folder).exists(), "its folder is gone")


def test_nobody_watches_a_server_that_is_stopped(postgres):
    assert len(guards_of(os.getpid())) >= 1
    postgres.stop()
    left = [line for line in guards_of(os.getpid()) if str(postgres._folder) in line]
    postgres.start()
    assert not left
