"""`mmesh up --observe`: real Prometheus and Alertmanager come, follow and go with a mesh."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from mmesh.cli.commands.top.alerts import firing
from mmesh.cli.commands.top.targets import prometheus_of
from mmesh.local.observers import Observers, rules_folder
from tests.effort import needs_full_effort

needs_programs = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("prometheus-alertmanager")),
    reason="prometheus or alertmanager is missing; `apt-get install prometheus "
    "prometheus-alertmanager` brings them",
)


def asked(url, path):
    with urllib.request.urlopen(f"{url}/api/{path}") as reply:
        return json.load(reply)


def targets_up(url):
    """Return the labels of the targets that answered their last scrape, by pod."""
    targets = asked(url, "v1/targets")["data"]["activeTargets"]
    return {one["labels"]["pod"]: one["labels"] for one in targets if one["health"] == "up"}


def is_running_on(folder):
    """Tell whether there is a process with a folder in its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder) in path.read_text():
                return True
    return False


@needs_full_effort
@needs_programs
async def test_a_mesh_is_scraped_with_the_rules_of_a_cluster_and_so_is_what_scaling_adds(
    start_mesh, tmp_path, eventually
):  # 4 CPU seconds; 15 s, since Prometheus takes new targets every 5 s
    mesh = start_mesh(tmp_path, shards=1, reranker="none", metrics=True)
    async with Observers(tmp_path, lambda _: None, scrape_s=0.2) as observers:
        url, alertmanager = observers.addresses["prometheus"], observers.addresses["alertmanager"]
        groups = asked(url, "v1/rules")["data"]["groups"]
        loaded = {rule["name"] for group in groups for rule in group["rules"]}
        written = [yaml.safe_load(path.read_text()) for path in rules_folder().glob("*.yaml")]
        ours = [rule for file in written for group in file["groups"] for rule in group["rules"]]
        assert loaded == {rule.get("alert") or rule["record"] for rule in ours}
        notified = f"{alertmanager}/api/v2/alerts"
        eventually(lambda: notified in str(asked(url, "v1/alertmanagers")), "alerts tell somebody")
        assert asked(alertmanager, "v2/status")["cluster"]["status"] == "disabled"
        eventually(lambda: targets_up(url).keys() == set(mesh.names), "all processes are scraped")
        assert prometheus_of(tmp_path) == url
        assert list(firing(url)) == []
        mesh.scale(1, replicas=2)
        eventually(lambda: targets_up(url).keys() == set(mesh.names), "the new one, too")
        labels = targets_up(url)["index-0-r1"]
        assert labels.items() >= {"job": "mmesh-index", "shard": "0", "shard_count": "1"}.items()
    assert not is_running_on(tmp_path / "observe")
    assert not prometheus_of(tmp_path)
    mesh.close()


@needs_programs
@pytest.mark.skipif(sys.platform != "linux", reason="a parent-death signal is Linux'")
def test_observers_end_with_a_mesh_that_is_killed(tmp_path, eventually):  # 3 CPU seconds
    program = "from mmesh.cli import main; main()"
    command = [sys.executable, "-c", program, "up", "--observe", "--port", "0",
               "--reranker", "none", "--data", "data"]  # fmt: skip
    up = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    try:
        url = next(line.split()[1] for line in up.stderr if line.startswith("prometheus http"))
        assert asked(url, "v1/rules")["data"]["groups"]
    finally:
        up.kill()
        up.communicate()
    eventually(lambda: not is_running_on(tmp_path), "nothing of it runs")


@needs_programs
async def test_an_observer_that_cannot_start_is_told_and_the_other_runs(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "observe").mkdir()
    (tmp_path / "observe" / "alertmanager.yml").write_text("no: config")
    said = []
    async with Observers(tmp_path, said.append) as observers:
        assert observers.addresses.keys() == {"prometheus"}
    assert [line.partition(" ")[0] for line in said] == ["alertmanager", "prometheus"]
    log = tmp_path / "logs" / "alertmanager.log"
    assert f"alertmanager ended (exit code 1); the mesh goes on without it, see {log}" in said
    assert "no" in log.read_text()


async def test_what_is_not_installed_is_told_with_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    said = []
    async with Observers(tmp_path, said.append) as observers:
        assert not observers.addresses
    (line,) = said
    assert line.startswith("prometheus is not installed")
    assert "apt-get install prometheus" in line
