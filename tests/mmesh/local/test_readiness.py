"""How long a start is waited for, and what is said when it fails."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from mmesh.local.mesh import LocalMesh
from mmesh.local.plan import HEALTH, LocalSettings, MeshFailed, Service
from mmesh.local.ports import free_port
from mmesh.local.processes import Launcher
from mmesh.local.readiness import Waiting, cause_of, cpu_seconds, last_message

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
    assert re.match(r"chatty \(\d+ s: ", waiting.describe())
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


@pytest.fixture
async def stranger():
    """A server at a free port that says of every service of a mesh that it is ready."""
    server, servicer = grpc.aio.server(), health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in ("", "a.b.Service", "a.b.Service@", *HEALTH.values()):
        await servicer.set(name, HealthCheckResponse.SERVING)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(0)


async def test_another_process_at_the_address_does_not_make_a_service_ready(start, stranger):
    service, waiting = await start("sleeper", "time.sleep(600)")
    service.port = stranger
    with pytest.raises(MeshFailed, match="no progress for 1 s"):
        await waiting.wait_ready(service)
    await end(service)


async def test_every_process_has_a_token_of_its_own(start):
    tokens = set()
    for name in ("one", "other"):
        body = f"print(os.environ['MMESH_{name.upper()}_START_TOKEN'], flush=True)"
        service, waiting = await start(name, body)
        with pytest.raises(MeshFailed) as failure:
            await waiting.wait_ready(service)
        assert service.token in str(failure.value).splitlines()[-1]
        tokens.add(service.token)
    assert len(tokens) == 2


async def test_a_mesh_on_a_port_that_is_taken_starts_nothing(tmp_path, stranger):
    with pytest.raises(MeshFailed, match=f"port {stranger} is taken"):
        async with LocalMesh(LocalSettings(tmp_path, port=stranger)):
            pass
    assert not list(tmp_path.rglob("*.log"))


@pytest.mark.parametrize("taken", ["logs", "lock", "index.new"])
async def test_a_mesh_whose_files_cannot_be_written_starts_nothing(tmp_path, taken):
    in_the_way = tmp_path / taken
    in_the_way.touch() if taken == "logs" else in_the_way.mkdir()
    with pytest.raises(MeshFailed, match=taken):
        async with LocalMesh(LocalSettings(tmp_path, port=0)):
            pass
    assert not list(tmp_path.rglob("*.log"))


def test_the_end_by_any_signal_has_words():
    for number in (signal.SIGKILL, *range(signal.SIGRTMIN, signal.SIGRTMAX + 1)):
        assert cause_of(-number).startswith("signal ")
