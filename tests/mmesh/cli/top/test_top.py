"""`mmesh top` beside a real mesh: what it says of searches, and of what is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmesh import Candidate, Content
from tests.effort import patient

TMUX = shutil.which("tmux")


@pytest.fixture
def traffic(client, collection):
    """Searches, one after the other, for as long as a test runs."""
    client.upsert_candidates(collection, [Candidate("a", Content.of("a cat"))])
    stop, begun = threading.Event(), threading.Event()

    def search():
        try:
            while not stop.is_set():
                if client.search(collection, f"the query {uuid.uuid4()}").hits:
                    begun.set()
        finally:
            begun.set()

    with ThreadPoolExecutor(1) as threads:
        searching = threads.submit(search)
        assert begun.wait(patient(30.0))
        yield
        stop.set()
        searching.result()


@pytest.fixture
def top(command_here, tmp_path):
    def run(*arguments):
        return command_here("top", "--interval", "0.3", *arguments, env={}, folder=tmp_path)

    return run


def test_it_tells_rates_latencies_coverage_and_replicas(traffic, top, mesh):
    code, output, _ = top("--json", "--data", mesh.settings.data)
    assert code == 0
    page = json.loads(output)
    now = page["traffic"]
    assert now["searches"] > 0
    assert 0 < now["times"]["p50"] <= now["times"]["p99"]
    assert now["coverage"] == 1.0
    assert now["embeddings_found"] == 0.0
    assert now["hits"].keys() == {"text"}
    assert page["replicas"] == {"0": 1, "1": 1}
    assert {"plan", "encode", "search"} <= page["stages"].keys()
    rows = {row["name"]: row for row in page["processes"]}
    assert rows.keys() == set(mesh.names)
    assert all(row["calls"] > 0 and not row["problem"] for row in rows.values())
    assert rows["encoder"]["queue_p99"] > 0
    assert all((row["candidates"] is not None) == (row["kind"] == "index") for row in rows.values())


def test_one_page_is_printed_for_scripts(traffic, top, mesh):
    code, output, _ = top("--once", "--data", mesh.settings.data)
    assert code == 0
    assert "searches 0.0/s" not in output
    assert "coverage 100.0 %" in output
    assert all(name in output for name in mesh.names)


def test_addresses_of_metrics_do_instead_of_a_folder(top, mesh):
    services = json.loads((mesh.settings.data / "mesh.json").read_text())["services"]
    address = services["index-0"]["metrics"]
    code, output, _ = top("--json", "--metrics", address, "--metrics", "127.0.0.1:1")
    assert code == 0
    page = json.loads(output)
    kinds = {row["name"]: row["kind"] for row in page["processes"]}
    assert kinds == {address: "index", "127.0.0.1:1": ""}
    silent = [one for one in page["troubles"] if one.startswith("127.0.0.1:1 ")]
    assert silent == ["127.0.0.1:1 does not answer: Connection refused"]


def test_when_nobody_answers_it_fails_and_says_what_starts_a_mesh(top):
    code, output, errors = top("--once", "--metrics", "127.0.0.1:1")
    assert code == 1
    assert "Connection refused" in output
    assert "`mmesh up` starts one" in errors


def test_what_answers_with_no_metrics_is_told_from_what_does(top, mesh):
    code, output, _ = top("--once", "--metrics", mesh.address)
    assert code == 1
    assert f"{mesh.address} does not answer: " in output


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (None, "no mesh has run on ."),
        ({"gateway": {"address": "h:1", "metrics": None}}, "was started without metrics"),
    ],
)
def test_a_folder_without_metrics_is_explained(top, tmp_path, described, said):
    if described:
        (tmp_path / "mesh.json").write_text(json.dumps({"services": described}))
    code, _, errors = top("--once", "--data", ".")
    assert code == 1
    assert said in errors


@pytest.mark.parametrize("address", ["file:///etc/passwd", "host", "h:port", "ftp://h:1", ""])
def test_what_is_no_address_is_wrong_usage(top, address):
    code, _, errors = top("--once", "--metrics", address)
    assert code == 2
    assert "--metrics" in errors


@pytest.mark.skipif(TMUX is None, reason="tmux is missing; `apt-get install tmux` brings it")
def test_on_a_terminal_the_page_follows_the_mesh(traffic, mesh, tmp_path, eventually):
    program = "from mmesh.cli import main; main()"
    command = [sys.executable, "-c", program, "top", "--interval", "0.3", "--data",
               str(mesh.settings.data)]  # fmt: skip

    config = tmp_path / "tmux.conf"
    config.write_text("set-option -g remain-on-exit on\n")  # what it said last stays

    def tmux(*arguments):
        done = subprocess.run(
            [TMUX, "-S", str(tmp_path / "socket"), "-f", str(config), *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=dict(os.environ),  # and no COLUMNS, which readline sets behind its back
        )
        return done.stdout

    def has_ended():
        return tmux("list-panes", "-F", "#{pane_dead}").strip() == "1"

    tmux("new-session", "-d", "-x", "120", "-y", "60", *command)
    try:
        seen = set()

        def changes():
            shown = tmux("capture-pane", "-p")
            wanted = ["searches", *mesh.names]  # what is half drawn lacks some
            if all(name in shown for name in wanted) and "searches 0.0/s" not in shown:
                seen.add(shown)
            return len(seen) > 2 or has_ended()

        eventually(changes, "pages that differ are on the screen")
        assert not has_ended()
        tmux("send-keys", "C-c")
        eventually(has_ended, "Ctrl-C ends it")
    finally:
        print("last on the screen:", tmux("capture-pane", "-p"))
        tmux("kill-server")
