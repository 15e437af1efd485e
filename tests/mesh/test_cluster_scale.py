"""`mmesh k8s scale` against a real mesh: what kubectl would do is done by the local mesh."""

from __future__ import annotations

import shutil
import stat
import threading
from pathlib import Path

import pytest

from mmesh import Client

K8S = Path(__file__).parents[2] / "k8s"


@pytest.fixture
def overlay(tmp_path) -> Path:
    return shutil.copytree(K8S, tmp_path / "k8s") / "overlays" / "laptop"


@pytest.fixture
def calls(tmp_path, monkeypatch) -> Path:
    """The calls that a stand-in for kubectl got."""
    log, program = tmp_path / "calls", tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    log.touch()
    return log


def test_the_old_set_goes_when_all_gateways_search_the_new_one_and_not_before(
    start_mesh, tmp_path, command_here, overlay, calls, eventually
):  # 6 s, for the start of a mesh
    mesh = start_mesh(tmp_path / "data", 1, reranker="none")

    def scale(*options: str) -> tuple[int, str, str]:
        common = ("--overlay", overlay, "--shards", "2", "--target-address", mesh.address)
        return command_here("k8s", "scale", *common, *options, env={}, folder=tmp_path)

    assert scale()[0] == 0
    code, _, errors = scale("--finish", "--apply")
    assert code == 1
    assert "0 of 2 shards have 1 ready; searches go to the set of 1" in errors
    assert calls.read_text() == ""

    def grow_when_applied() -> None:
        eventually(calls.read_text, "kubectl was called")
        mesh.scale(2)

    cluster = threading.Thread(target=grow_when_applied)
    cluster.start()
    code, output, errors = scale("--apply", "--timeout", "120")
    cluster.join()
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[1] == f"running: kubectl apply -k {overlay}"
    assert any("searches go to the set of 1" in line for line in lines[2:-2])
    assert lines[-2] == "1 gateway searches the new set"
    with Client(mesh.address) as client:
        assert client.get_status().shard_count == 2
    assert scale("--finish", "--apply")[0] == 0
    assert calls.read_text().splitlines() == [
        f"apply -k {overlay}",
        "delete -n mmesh statefulset,poddisruptionbudget -l mmesh.dev/shard-count=1",
    ]
    assert [p.name for p in (overlay / "shards").iterdir() if p.is_dir()] == ["2"]


def test_a_gateway_that_does_not_answer_is_named(tmp_path, command_here, overlay):
    code, _, errors = command_here(
        "k8s", "scale", "--overlay", overlay, "--shards", "2", "--wait", "--timeout", "1",
        "--target-address", "dns:///localhost:9", env={}, folder=tmp_path,
    )  # fmt: skip
    assert code == 1
    assert "127.0.0.1:9: " in errors
