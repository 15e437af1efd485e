"""Orders to scale a local mesh: none is lost, and none is left over from another mesh."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from mmesh.cli.commands.up import _serve
from mmesh.local.mesh import ORDER, LocalMesh
from mmesh.local.plan import LocalSettings, MeshFailed, plan_services
from mmesh.local.scaling import (
    ScaleOrder,
    _place_order,
    _report_of,
    _report_path,
    carry_out_orders,
    order_scaling,
)


@dataclass
class NotedMesh:
    """A mesh that notes how it is scaled."""

    settings: SimpleNamespace
    address: str = "127.0.0.1:1"
    scaled: list[tuple[int, int]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, line: str) -> None:
        self.said.append(line)

    async def scale(self, shards: int, replicas: int, tell: object) -> None:
        self.scaled.append((shards, replicas))
        self.done.set()


async def test_an_order_that_comes_with_the_first_word_is_carried_out(tmp_path, monkeypatch):
    mesh = NotedMesh(SimpleNamespace(data=tmp_path))

    def echo(message: str, **_: object) -> None:
        if message.startswith("ready"):
            _place_order(tmp_path, ScaleOrder("at once", 2, 1))

    monkeypatch.setattr(click, "echo", echo)
    stop = asyncio.Event()
    serving = asyncio.create_task(_serve(mesh, stop))
    await asyncio.wait_for(mesh.done.wait(), 10)
    stop.set()
    await serving
    assert mesh.scaled == [(2, 1)]


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


async def test_a_scale_that_fails_leaves_the_mesh_as_it_was(tmp_path, monkeypatch):
    mesh = LocalMesh(LocalSettings(tmp_path), say=lambda _: None)
    mesh.services = plan_services(mesh.settings)
    before = list(mesh.services)
    for name in ("description", "addresses"):
        with monkeypatch.context() as patched:
            patched.setattr(mesh, f"_write_{name}", full_disk)
            patched.setattr(mesh, "_bring_up", nothing)
            with pytest.raises(OSError, match="No space left"):
                await mesh.scale(2, 1)
        assert mesh.services == before
        assert not mesh._watchers


@pytest.fixture
async def folder(tmp_path):
    """A data folder that a mesh has taken, which has not started anything yet."""
    mesh = LocalMesh(LocalSettings(tmp_path))
    mesh._take_folder()
    yield tmp_path
    mesh._lock.close()


async def ordered(data: Path, shards: int) -> list[str]:
    return await asyncio.to_thread(lambda: list(order_scaling(data, shards, 1)))


async def carrying_out(mesh: NotedMesh, *orders: asyncio.Task[list[str]]) -> list[object]:
    serving = asyncio.create_task(carry_out_orders(mesh))
    async with asyncio.timeout(10):
        results = await asyncio.gather(*orders, return_exceptions=True)
    serving.cancel()
    return results


async def test_an_order_that_comes_while_the_mesh_starts_is_carried_out(folder):
    mesh = NotedMesh(SimpleNamespace(data=folder))
    order = asyncio.create_task(ordered(folder, 3))
    await asyncio.sleep(0.3)
    assert await carrying_out(mesh, order) == [[]]
    assert mesh.scaled == [(3, 1)]


def test_an_order_that_a_mesh_before_has_left_is_forgotten(tmp_path):
    _place_order(tmp_path, ScaleOrder("of before", 8, 8))
    mesh = LocalMesh(LocalSettings(tmp_path))
    mesh._take_folder()
    mesh._lock.close()
    assert not (tmp_path / ORDER).exists()


async def test_an_order_whose_end_cannot_be_reported_ends(folder):
    mesh = NotedMesh(SimpleNamespace(data=folder))
    _report_path(folder).mkdir()  # which nothing can be written to
    [failure] = await carrying_out(mesh, asyncio.create_task(ordered(folder, 2)))
    assert "cannot tell how it went" in str(failure)
    _report_path(folder).rmdir()
    assert await carrying_out(mesh, asyncio.create_task(ordered(folder, 3))) == [[]]
    assert mesh.scaled == [(2, 1), (3, 1)]


async def test_orders_are_taken_again_when_that_has_failed(folder, monkeypatch):
    monkeypatch.setattr("mmesh.local.scaling._CALM_S", 0.05)
    mesh = NotedMesh(SimpleNamespace(data=folder))
    (folder / ORDER).mkdir()
    serving = asyncio.create_task(carry_out_orders(mesh))
    await asyncio.sleep(0.2)
    assert "IsADirectoryError" in mesh.said[0]
    (folder / ORDER).rmdir()
    assert await ordered(folder, 2) == []
    serving.cancel()


def test_what_is_left_of_a_report_is_no_report(tmp_path):
    order = ScaleOrder("this", 2, 1)
    _report_path(tmp_path).write_text('{"order": "th{"order": "this"}\n{"order": "this"}\n{"or')
    assert _report_of(tmp_path, order) == [{"order": "this"}]


def test_an_order_that_cannot_be_written_is_refused(folder):
    (folder / "scale-this.json").mkdir()
    with pytest.raises(MeshFailed, match="cannot be written"):
        _place_order(folder, ScaleOrder("this", 2, 1))


async def nothing(*_: object) -> None:
    pass
