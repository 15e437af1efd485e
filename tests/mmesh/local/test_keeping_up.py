"""A service that dies is started again, whoever has stopped to listen to its mesh."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest

from mmesh.local import mesh as local_mesh
from mmesh.local.mesh import LocalMesh
from mmesh.local.plan import LocalSettings


class Listener:
    """Raises an error the first times that it is told something."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.left = error, times
        self.heard: list[str] = []

    def __call__(self, line: str) -> None:
        if self.left:
            self.left -= 1
            raise self.error
        self.heard.append(line)


@pytest.fixture
async def watched(make_service, tmp_path):
    """Watch over a service that never serves; return it and its mesh."""
    meshes = []

    async def watch(say: Callable[[str], None], **settings: float):
        mesh = LocalMesh(LocalSettings(tmp_path, **settings), say=say, show_waiting=say)
        meshes.append(mesh)
        (tmp_path / "logs").mkdir()
        mesh.services = [make_service("sleeper", "time.sleep(600)")]
        mesh.services[0].forks = False
        await mesh._start(mesh.services[0])
        mesh._watch(mesh.services)
        return mesh, mesh.services[0]

    yield watch
    for mesh in meshes:
        await mesh._stop_all(1)


async def restarted(service) -> None:
    before = service.process
    async with asyncio.timeout(10):
        while service.process is before:  # noqa: ASYNC110  # nobody sets an event
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "EIO"), ValueError("closed file")])
async def test_a_service_is_restarted_where_nobody_reads_that(watched, error):
    mesh, service = await watched(Listener(error, 1000))
    mesh.show_waiting("")
    service.process.send_signal(signal.SIGKILL)
    await restarted(service)


async def test_the_end_by_a_real_time_signal_is_an_end(watched):
    said = Listener(OSError(), 0)
    _, service = await watched(said)
    service.process.send_signal(signal.SIGRTMIN + 6)
    await restarted(service)
    assert f"signal {signal.SIGRTMIN + 6}" in said.heard[0]


async def test_a_watcher_that_fails_goes_on(watched, monkeypatch):
    monkeypatch.setattr(local_mesh, "_LONGEST_PAUSE_S", 0.05)
    said = Listener(RuntimeError("a defect"), 1)
    _, service = await watched(said)
    service.process.send_signal(signal.SIGKILL)
    await restarted(service)
    assert "RuntimeError: a defect" in said.heard[0]


async def test_a_service_that_hangs_while_it_is_restarted_is_killed_and_restarted(watched):
    said = Listener(OSError(), 0)
    _, service = await watched(said, start_timeout_s=0.5)
    service.process.send_signal(signal.SIGKILL)
    for _ in range(2):
        await restarted(service)
    assert "sleeper does not start: no progress for 0 s" in said.heard[1]
    assert said.heard[1].endswith("killing it")
    assert said.heard[2].startswith("sleeper died (signal SIGKILL); restarting it in")
