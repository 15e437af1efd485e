"""Logs of a mesh that runs for long stay small, and lose nothing that was written before."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mmesh.local import rotation
from mmesh.local.mesh import LocalMesh
from mmesh.local.plan import LocalSettings
from mmesh.local.rotation import rotate

MOST = 100


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "gateway.log"


def test_a_log_that_is_small_or_not_there_is_left(log):
    assert not rotate(log, MOST)
    log.write_bytes(bytes(MOST))
    assert not rotate(log, MOST)
    assert list(log.parent.iterdir()) == [log]


def test_whoever_writes_goes_on_and_what_was_written_is_kept_once(log):
    kept = log.with_name("gateway.1.log")
    with log.open("ab", buffering=0) as writer:
        for number in range(3):
            text = f"{number}".encode() * (MOST + 1)
            writer.write(text)
            assert rotate(log, MOST)
            assert (log.read_bytes(), kept.read_bytes()) == (b"", text)
        writer.write(b"more")
    assert log.read_bytes() == b"more"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_where_no_space_is_left_a_log_stays_as_it_is(log):
    log.write_bytes(bytes(MOST + 1))
    log.with_name("gateway.1.log").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        rotate(log, MOST)
    assert log.read_bytes() == bytes(MOST + 1)
    assert list(log.parent.iterdir()) == [log]


async def test_a_mesh_rotates_the_logs_of_its_services_and_says_what_keeps_it_from_that(
    make_service, tmp_path, monkeypatch
):
    monkeypatch.setattr(rotation, "LOOK_S", 0.02)
    said: list[str] = []
    mesh = LocalMesh(LocalSettings(tmp_path, log_bytes=MOST), say=said.append)
    (tmp_path / "logs").mkdir()
    chatty = "while True: print('x' * 60, flush=True); time.sleep(0.01)"
    mesh.services = [make_service("chatty", chatty), make_service("quiet", "time.sleep(600)")]
    kept = tmp_path / "logs" / "chatty.1.log"
    try:
        for service in mesh.services:
            service.forks = False
            service.log_start = MOST
            await mesh._start(service)
        kept.mkdir()
        mesh._watch(mesh.services)
        async with asyncio.timeout(10):
            while not said:  # noqa: ASYNC110  # nobody sets an event
                await asyncio.sleep(0.02)
            kept.rmdir()
            while not kept.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            while mesh.services[0].log_start:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            observer = tmp_path / "logs" / "prometheus.log"
            observer.write_bytes(bytes(2 * MOST))
            while not observer.with_name("prometheus.1.log").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert not list((tmp_path / "logs").glob("*.1.1.log"))
    finally:
        await mesh._stop_all(1)
    assert len(said) == 1
    assert said[0].startswith("the log of chatty goes on growing (IsADirectoryError")
    assert set(kept.read_text().split()) == {"x" * 60}
    assert [path.name for path in (tmp_path / "logs").glob("quiet*")] == ["quiet.log"]
