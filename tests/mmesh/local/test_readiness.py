"""How long a start is waited for, and what is said when it fails."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from mmesh.local.plan import MeshFailed, Service
from mmesh.local.ports import free_port
from mmesh.local.processes import Launcher
from mmesh.local.readiness import Waiting, cpu_seconds, last_message

TIMEOUT_S = 1.0


@pytest.fixture
def start(make_service, tmp_path):
    """Start a service that never serves; return it and what waits for it."""

    async def start(name: str, body: str) -> tuple[Service, Waiting]:
        service = make_service(name, body)
        service.forks, service.port = False, free_port()
        launcher = Launcher(tmp_path, print)
        service.process = await launcher.start(service)
        return service, Waiting(launcher.log_of, TIMEOUT_S)

    return start


async def end(service: Service) -> None:
    os.killpg(service.process.pid, signal.SIGKILL)  # with its children
    await service.process.wait()


async def test_a_service_that_only_sleeps_is_given_up(start):  # its timeout
    service, waiting = await start("sleeper", "print('loading', flush=True)\ntime.sleep(600)")
    with pytest.raises(MeshFailed, match="no progress for 1 s"):
        await waiting.wait_ready(service)
    assert waiting.describe() == ""
    await end(service)


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "while True: print('layer', flush=True) or time.sleep(0.1)",
        "import subprocess; subprocess.run([sys.executable, '-c', 'while True: pass'])",
    ],
    ids=["computes", "writes", "has a child that computes"],
)
async def test_a_service_that_makes_progress_is_waited_for(start, body):  # 2 timeouts each
    service, waiting = await start("busy", body)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2 * TIMEOUT_S):
            await waiting.wait_ready(service)
    await end(service)


async def test_the_end_of_its_log_tells_why_a_service_did_not_start(start):
    lines = "for n in range(30): print('line', n)\nsys.exit('the model is not there')"
    service, waiting = await start("failing", lines)
    with pytest.raises(MeshFailed) as failure:
        await waiting.wait_ready(service)
    said = str(failure.value)
    assert "failing ended while it started (exit code 1)" in said
    assert "the model is not there" in said
    assert "line 29" in said
    assert "line 5\n" not in said


async def test_who_is_waited_for_is_told_with_what_they_say(start):
    line = '{"level": "INFO", "message": "loading weights"}'
    service, waiting = await start("chatty", f"print('{line}', flush=True)\ntime.sleep(600)")
    ready = asyncio.create_task(waiting.wait_ready(service))
    async with asyncio.timeout(20):
        while "loading weights" not in waiting.describe():  # noqa: ASYNC110  # a file tells nobody
            await asyncio.sleep(0.02)
    assert waiting.describe().startswith("chatty (0 s")
    ready.cancel()
    await end(service)


def test_the_last_message_is_that_of_json_or_the_line(tmp_path):
    log = tmp_path / "log"
    assert last_message(log) == ""
    log.write_text('{"message": "serving"}\n')
    assert last_message(log) == "serving"
    log.write_text('{"message": "serving"}\n[1, 2]\n')
    assert last_message(log) == "[1, 2]"
    assert last_message(log, log.stat().st_size) == ""
    log.write_bytes(b"\xff" * 100_000)
    assert 0 < len(last_message(log)) <= 300


def test_a_process_that_is_gone_has_used_no_time():
    assert cpu_seconds(2**22 + 1) == 0.0
    assert sys.platform != "linux" or cpu_seconds(1) >= 0.0
