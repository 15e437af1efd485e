"""Services and clients killed in the middle of an ingest: everything arrives, and once."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from mmesh import Candidate, Client, Content, Progress
from mmesh.api.index.v1 import index_pb2, index_pb2_grpc
from mmesh.content import Modality
from mmesh.search import Consistency
from tests.effort import needs_full_effort

TEXTS, IMAGES = 600, 40
ROWS = 1500
MMESH = str(Path(sys.executable).with_name("mmesh"))


@pytest.fixture(scope="module")
def own_mesh(start_mesh, tmp_path_factory):
    mesh = start_mesh(tmp_path_factory.mktemp("killed"), reranker="none")
    yield mesh
    mesh.close()


def counts_by_shard(mesh) -> list[tuple[int, int]]:
    """Return what each shard can find, and how many writes it is behind."""
    counts = []
    for shard in range(2):
        with grpc.insecure_channel(mesh.address_of(f"index-{shard}")) as channel:
            stub = index_pb2_grpc.IndexServiceStub(channel)
            reply = stub.GetShard(index_pb2.GetShardRequest(), timeout=10)
            assert (reply.shard, reply.shard_count) == (shard, 2)
            counts.append((reply.candidates, reply.lag))
    return counts


class Killer:
    """Kills services at moments of the ingest that the seed chooses, a little after each ack."""

    def __init__(self, mesh, victims: list[str], total: int, seed: int) -> None:
        self._mesh, self._random = mesh, random.Random(seed)
        moments = sorted(self._random.sample(range(total // 10, total * 8 // 10), len(victims)))
        self._due = list(zip(moments, victims, strict=True))
        self._timers: list[threading.Timer] = []
        self.killed: list[str] = []

    def note(self, progress: Progress) -> None:
        if self._due and progress.stored >= self._due[0][0]:
            _, victim = self._due.pop(0)
            timer = threading.Timer(self._random.uniform(0, 0.05), self._kill, [victim])
            self._timers.append(timer)
            timer.start()

    def _kill(self, victim: str) -> None:
        if self._mesh.kill(victim):
            self.killed.append(victim)

    def join(self) -> None:
        for timer in self._timers:
            timer.join()


@pytest.mark.parametrize("seed", [7])
def test_an_ingest_survives_the_death_of_every_service(
    own_mesh, new_collection, new_candidates, ids_in, eventually, seed
):
    candidates = new_candidates(TEXTS, IMAGES)
    random.Random(seed).shuffle(candidates)
    victims = ["encoder", "index-0", "gateway"]
    random.Random(seed).shuffle(victims)
    killer = Killer(own_mesh, victims, len(candidates), seed)
    restarts = own_mesh.restarts()
    with Client(own_mesh.address) as client, new_collection(client) as name:
        report = client.ingest(name, candidates, batch_size=16, on_progress=killer.note)
        killer.join()
        own_mesh.wait_serving()
        assert sorted(killer.killed) == sorted(victims)
        assert all(own_mesh.restarts()[victim] > restarts[victim] for victim in victims)
        assert (report.stored, report.rejected) == (len(candidates), ())

        listed = ids_in(client, name)
        assert listed == sorted(candidate.id for candidate in candidates)
        by_modality = client.get_collection(name).candidates
        assert by_modality == {
            Modality.TEXT: TEXTS,
            Modality.IMAGE: IMAGES,
            Modality.IMAGE_TEXT: 0,
        }
        eventually(lambda: all(lag == 0 for _, lag in counts_by_shard(own_mesh)), "shards follow")
        counts = [count for count, _ in counts_by_shard(own_mesh)]
        assert sum(counts) == len(candidates)
        assert min(counts) > 0
        for candidate in random.Random(seed).sample(candidates, 20):
            found = client.search(
                name, candidate.content, token=report.token, limit=20, require_all_shards=True
            )
            ids = [hit.id for hit in found.hits]
            assert ids.count(candidate.id) == 1
            assert len(set(ids)) == len(ids)
            best = max(found.hits, key=lambda hit: hit.retrieval_score)
            assert best.id == candidate.id


def test_an_acknowledged_upsert_outlives_the_death_of_every_index_process(
    own_mesh, new_collection, new_candidates, ids_in, eventually
):
    candidates = new_candidates(40, 5)
    with Client(own_mesh.address) as client, new_collection(client) as name:
        token = client.upsert_candidates(name, candidates).token
        for shard in ("index-0", "index-1"):
            own_mesh.kill(shard)
        own_mesh.wait_serving("index-0", "index-1")
        eventually(
            lambda: client.get_status().is_serving,
            "the gateway has noticed",
        )
        assert ids_in(client, name) == sorted(candidate.id for candidate in candidates)
        found = client.search(
            name, candidates[0].content, token=token, require_all_shards=True, limit=1
        )
        assert found.hits[0].id == candidates[0].id
        (back,) = client.batch_get_candidates(name, [candidates[-1].id])
        assert back.content == candidates[-1].content


@pytest.fixture
def rows_file(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = ({"id": f"row-{n:05}", "text": f"row {n} of a long file"} for n in range(ROWS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settled_in(state: Path) -> int:
    """Return how many candidates are stored by the only journal; 0 without one."""
    journals = list((state / "mmesh" / "ingests").glob("*.sqlite"))
    if not journals:
        return 0
    with closing(sqlite3.connect(journals[0], timeout=30)) as journal:
        if not journal.execute("SELECT 1 FROM sqlite_master WHERE name = 'items'").fetchone():
            return 0
        query = "SELECT count(*) FROM items WHERE digest IS NOT NULL"
        return journal.execute(query).fetchone()[0]


def test_the_command_line_killed_half_way_goes_on_where_it_was(
    own_mesh, new_collection, rows_file, tmp_path, ids_in, eventually
):
    state = tmp_path / "state"
    environment = os.environ | {"XDG_STATE_HOME": str(state)}
    with Client(own_mesh.address) as client, new_collection(client) as name:
        command = [
            MMESH,
            "ingest",
            name,
            str(rows_file),
            "--target-address",
            own_mesh.address,
            "--batch-size",
            "32",
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment, **pipes) as first:
            eventually(lambda: settled_in(state) > 1 or first.poll() is not None, "it is under way")
            assert first.poll() is None, first.communicate()
            os.kill(first.pid, signal.SIGKILL)
            first.communicate()
        settled = settled_in(state)
        assert 1 < settled < ROWS
        stored = sum(client.get_collection(name).candidates.values())
        assert settled <= stored < ROWS

        lines = rows_file.read_text().splitlines()  # what comes early is seen all the same
        lines[0] = json.dumps({"id": "row-00000", "text": "changed since"})
        early = json.dumps({"id": "early", "text": "came since"})
        rows_file.write_text("\n".join([early, *lines]))
        second = subprocess.run(command, env=environment, timeout=60, check=False, **pipes)
        assert second.returncode == 0, second.stderr
        assert f"going on after {settled} candidates" in second.stderr
        count = f"stored {ROWS - settled + 2}, rejected 0, unchanged {settled - 1}"
        assert second.stdout.strip() == count
        assert ids_in(client, name, 1000) == ["early", *(f"row-{n:05}" for n in range(ROWS))]
        (changed,) = client.batch_get_candidates(name, ["row-00000"])
        assert changed.content.text == "changed since"
        found = client.search(
            name, f"row {ROWS - 1} of a long file", consistency=Consistency.STRONG, limit=1
        )
        assert found.hits[0].retrieval_score == pytest.approx(1.0, abs=1e-3)
        assert settled_in(state) == ROWS + 1


@pytest.mark.parametrize("deaths", [1, pytest.param(2, marks=needs_full_effort)])
def test_a_mesh_that_is_stopped_while_a_service_restarts_leaves_no_process_behind(
    start_mesh, tmp_path, eventually, deaths
):
    mesh = start_mesh(tmp_path, shards=1, reranker="none")
    ports = {mesh.address_of(name).rpartition(":")[2] for name in mesh.names}
    for _ in range(deaths):  # each doubles the pause, until the restart falls into the stop
        before = mesh.restarts()["encoder"]
        eventually(lambda: mesh.kill("encoder"), "the encoder runs")
        eventually(lambda before=before: mesh.restarts()["encoder"] > before, "it is restarted")
    eventually(lambda: mesh.kill("encoder"), "the encoder runs")
    eventually(lambda: mesh.pid("encoder") is None, "the encoder is dead")
    mesh.close()
    left = [pid for pid in processes_with("services.") if ports & set(arguments_of(pid))]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def arguments_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def processes_with(word: str) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if any(word in argument for argument in arguments_of(pid))]


def test_the_last_batch_that_brings_an_id_wins(client, collection):
    texts = [f"version {n}" for n in range(200)]
    report = client.ingest(
        collection, [Candidate("one", Content.of(text)) for text in texts], batch_size=1
    )
    assert report.stored == 200
    (found,) = client.batch_get_candidates(collection, ["one"])
    assert found.content.text == texts[-1]
