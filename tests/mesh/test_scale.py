"""More shards, fewer shards, lost replicas: searches and ingests must not notice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from mmesh import Client, Rerank
from mmesh.errors import MmeshError
from mmesh.search import Consistency

CANDIDATES = 300
QUERY = "harbour glacier violin"
TIMEOUT_S = 10.0
MMESH = (sys.executable, "-c", "from mmesh.cli import main; main()")


@pytest.fixture
def scalable_mesh(start_mesh, tmp_path):
    mesh = start_mesh(tmp_path / "scaled", 2, reranker="none")
    yield mesh
    mesh.close()


@pytest.fixture
def filled(scalable_mesh, new_candidates) -> Iterator[tuple[Client, str, list[str]]]:
    """A client, a collection, and the ids in it."""
    with Client(scalable_mesh.address) as client:
        client.create_collection("c")
        candidates = new_candidates(CANDIDATES)
        client.ingest("c", candidates)
        client.search("c", QUERY, consistency=Consistency.STRONG)
        yield client, "c", sorted(one.id for one in candidates)


class Searcher(threading.Thread):
    """Searches all the time until it is stopped, and keeps every failure."""

    def __init__(self, address: str, collection: str, known: list[str]) -> None:
        super().__init__()
        self._address, self._collection, self._known = address, collection, set(known)
        self._stopped = threading.Event()
        self.searches = 0
        self.wrong: list[object] = []
        self.slowest_s = 0.0
        self.shards: set[int] = set()

    def run(self) -> None:
        with Client(self._address) as client:
            while not self._stopped.is_set():
                self._search(client)

    def _search(self, client: Client) -> None:
        start = time.monotonic()
        try:
            found = client.search(
                self._collection, QUERY, limit=1000, rerank=Rerank(0), require_all_shards=True,
                timeout=TIMEOUT_S,
            )  # fmt: skip
        except MmeshError as error:
            self.wrong.append(error)
            return
        self.searches += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - start)
        self.shards.add(found.coverage.shards_total)
        ids = [hit.id for hit in found.hits]
        lost, doubled = self._known - set(ids), len(ids) - len(set(ids))
        if lost or doubled or found.degradations:
            self.wrong.append((sorted(lost)[:3], len(lost), doubled, found.degradations))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


@contextmanager
def searching(address: str, collection: str, known: list[str], threads: int = 2):
    """Search on several threads meanwhile; afterwards nothing may have been wrong."""
    searchers = [Searcher(address, collection, known) for _ in range(threads)]
    for searcher in searchers:
        searcher.start()
    try:
        yield searchers
    finally:
        for searcher in searchers:
            searcher.stop()
    wrong = [one for searcher in searchers for one in searcher.wrong]
    assert not wrong, f"{len(wrong)} of {sum(s.searches for s in searchers)}: {wrong[:3]}"


def shards_in_use(client: Client, collection: str) -> int:
    return client.search(collection, QUERY, timeout=TIMEOUT_S).coverage.shards_total


def all_ids(client: Client, collection: str) -> list[str]:
    found = client.search(
        collection, QUERY, limit=1000, rerank=Rerank(0), consistency=Consistency.STRONG
    )
    assert not found.degradations
    return sorted(hit.id for hit in found.hits)


def test_the_number_of_shards_changes_under_searches_and_an_ingest(
    scalable_mesh, filled, new_candidates, ids_in
):
    client, collection, known = filled
    more = new_candidates(400, prefix="more ")
    reports = []

    def ingest() -> None:
        with Client(scalable_mesh.address) as ingesting:
            reports.append(ingesting.ingest(collection, slowly(more), batch_size=8))

    with searching(scalable_mesh.address, collection, known) as searchers:
        ingesting = threading.Thread(target=ingest)
        ingesting.start()
        scalable_mesh.scale(3)
        assert shards_in_use(client, collection) == 3
        scalable_mesh.scale(2)
        assert shards_in_use(client, collection) == 2
        ingesting.join()
    assert {3, 2} == set.union(*(searcher.shards for searcher in searchers))
    assert (reports[0].stored, reports[0].rejected) == (len(more), ())
    everything = sorted([*known, *(one.id for one in more)])
    assert ids_in(client, collection) == everything
    assert all_ids(client, collection) == everything
    index = [name for name in scalable_mesh.names if name.startswith("index")]
    assert index == ["index-0-of-2", "index-1-of-2"]
    assert all(scalable_mesh.pid(name) for name in index)


def slowly(candidates):
    for number, candidate in enumerate(candidates):
        if number % 8 == 0:
            time.sleep(0.2)
        yield candidate


def test_a_replica_that_is_killed_costs_no_search_and_no_coverage(
    scalable_mesh, filled, eventually
):
    client, collection, known = filled
    scalable_mesh.scale(2, 2)
    assert {"index-0", "index-1", "index-0-r1", "index-1-r1"} <= set(scalable_mesh.names)
    with searching(scalable_mesh.address, collection, known) as searchers:
        for victim in ("index-0", "index-1-r1"):
            before = sum(searcher.searches for searcher in searchers)
            assert scalable_mesh.kill(victim)
            eventually(
                lambda before=before: sum(s.searches for s in searchers) > before + 20,
                "searches go on",
            )
            eventually(lambda: is_whole(client), "the replica is back", 60.0)
    scalable_mesh.scale(2, 1)
    assert not any(name.endswith("-r1") for name in scalable_mesh.names)
    assert all_ids(client, collection) == known


def is_whole(client: Client) -> bool:
    status = client.get_status(timeout=TIMEOUT_S)
    return len(status.services) == 5 and status.is_serving


def test_a_process_of_a_new_set_that_is_killed_takes_no_search_with_it(
    scalable_mesh, filled, eventually
):
    client, collection, known = filled
    with searching(scalable_mesh.address, collection, known):
        scaling = threading.Thread(target=scalable_mesh.scale, args=(1, 2))
        scaling.start()
        eventually(lambda: "index-0-of-1" in scalable_mesh.names, "the new set starts")
        scalable_mesh.wait_serving("index-0-of-1")
        time.sleep(0.3)  # the mesh has seen it too
        assert scalable_mesh.kill("index-0-of-1")
        scaling.join()
    assert shards_in_use(client, collection) == 1
    assert all_ids(client, collection) == known


def test_an_alias_that_moves_never_mixes_two_collections(scalable_mesh, filled, new_candidates):
    client, old, known = filled
    client.create_collection("d")
    new = new_candidates(CANDIDATES, prefix="new ")
    client.ingest("d", new)
    for name in (old, "d"):
        client.search(name, QUERY, consistency=Consistency.STRONG)
    sides = {old: set(known), "d": {one.id for one in new}}
    client.set_alias("both", old)
    time.sleep(0.2)
    stopped, wrong, seen = threading.Event(), [], set()

    def search() -> None:
        with Client(scalable_mesh.address) as searching:
            while not stopped.is_set():
                found = searching.search("both", QUERY, limit=1000, rerank=Rerank(0))
                ids = {hit.id for hit in found.hits}
                side = next((name for name, has in sides.items() if ids == has), None)
                seen.add(side)
                if side is None or found.degradations:
                    wrong.append((len(ids), found.degradations))

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(20):
        client.set_alias("both", "d" if number % 2 == 0 else old)
        time.sleep(float(np.random.default_rng(number).uniform(0.05, 0.2)))
    stopped.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
    assert seen == {old, "d"}


@contextmanager
def mesh_up(data, *options: str):
    command = [*MMESH, "up", "--data", str(data), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--reranker", "none", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        words = process.stdout.readline().split()
        assert words[:1] == ["ready"], process.stderr.read()
        yield words[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def scale_command(data, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*MMESH, "scale", "--data", str(data), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_scales_the_mesh_that_runs_on_a_folder(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    nothing = scale_command(data, "--shards", "2")
    assert nothing.returncode == 1
    assert f"no mesh runs on {data}" in nothing.stderr
    with mesh_up(data, "--replicas", "2") as address, Client(address) as client:
        done = scale_command(data, "--shards", "2", "--replicas", "1")
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0] == "loading index-0-of-2, index-1-of-2"
        assert lines[-1] == "the mesh has 2 shards, 1 process each"
        status = client.get_status()
        places = [(one.role.value, one.shard, one.shard_count) for one in status.services]
        assert places == [("encoder", 0, 0), ("index", 0, 2), ("index", 1, 2)]
        assert status.shard_count == 2
        assert not (data / "scale.json").exists()
        wrong = scale_command(data, "--shards", "0")
        assert wrong.returncode == 2
    assert scale_command(data, "--shards", "2").returncode == 1
    assert not os.path.exists(data / "scale.json")
