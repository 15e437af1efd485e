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
from tests.effort import EFFORT, patient

CANDIDATES = 300
QUERY = "harbour glacier violin"
TIMEOUT_S = patient(10.0)
MMESH = (sys.executable, "-c", "from mmesh.cli import main; main()")


@pytest.fixture(scope="module")
def own_mesh(start_mesh, tmp_path_factory):
    mesh = start_mesh(tmp_path_factory.mktemp("scaled"), 2, reranker="none")
    yield mesh
    mesh.close()


@pytest.fixture
def scalable_mesh(own_mesh):
    """A mesh of two shards in one process each, before and after a test."""
    yield own_mesh
    own_mesh.scale(2, 1)


@pytest.fixture
def filled(
    scalable_mesh, new_collection, new_candidates
) -> Iterator[tuple[Client, str, list[str]]]:
    """A client, a collection, and the ids in it."""
    with Client(scalable_mesh.address) as client, new_collection(client) as name:
        candidates = new_candidates(CANDIDATES)
        client.ingest(name, candidates)
        client.search(name, QUERY, consistency=Consistency.STRONG)
        yield client, name, sorted(one.id for one in candidates)


def index_names(mesh) -> list[str]:
    """Return the names of the index processes, by replica and shard."""
    return [name for name in mesh.names if name.startswith("index")]


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
            while not self._stopped.wait(EFFORT.pause_s):
                self._search(client)

    def _search(self, client: Client) -> None:
        start = time.monotonic()
        try:
            found = client.search(
                self._collection,
                QUERY,
                limit=1000,
                rerank=Rerank(0),
                require_all_shards=True,
                timeout=TIMEOUT_S,
            )
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
    reports, scaled = [], threading.Event()

    def ingest() -> None:
        with Client(scalable_mesh.address) as ingesting:
            reports.append(ingesting.ingest(collection, slowly(more, scaled), batch_size=8))

    with searching(scalable_mesh.address, collection, known) as searchers:
        ingesting = threading.Thread(target=ingest)
        ingesting.start()
        scalable_mesh.scale(3)
        assert shards_in_use(client, collection) == 3
        scalable_mesh.scale(2)
        assert shards_in_use(client, collection) == 2
        scaled.set()
        ingesting.join()
    assert {3, 2} == set.union(*(searcher.shards for searcher in searchers))
    assert (reports[0].stored, reports[0].rejected) == (len(more), ())
    everything = sorted([*known, *(one.id for one in more)])
    assert ids_in(client, collection) == everything
    assert all_ids(client, collection) == everything
    index = index_names(scalable_mesh)
    assert index == ["index-0-of-2", "index-1-of-2"]
    assert all(scalable_mesh.pid(name) for name in index)


def slowly(candidates, over: threading.Event):
    """Yield 16 candidates a second as long as it is not over, and then the others at once."""
    for number, candidate in enumerate(candidates):
        if number % 8 == 0:
            over.wait(0.5)
        yield candidate


def test_a_replica_that_is_killed_costs_no_search_and_no_coverage(
    scalable_mesh, filled, eventually
):
    client, collection, known = filled
    first, second = index_names(scalable_mesh)
    scalable_mesh.scale(2, 2)
    assert set(index_names(scalable_mesh)) == {first, second, f"{first}-r1", f"{second}-r1"}
    with searching(scalable_mesh.address, collection, known) as searchers:
        for victim in (first, f"{second}-r1"):
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


@pytest.fixture
def second(filled, new_collection) -> Iterator[str]:
    """Another collection of the same mesh."""
    with new_collection(filled[0]) as name:
        yield name


def test_an_alias_that_moves_never_mixes_two_collections(
    scalable_mesh, filled, second, new_candidates
):
    client, old, known = filled
    new = new_candidates(CANDIDATES, prefix="new ")
    client.ingest(second, new)
    for name in (old, second):
        client.search(name, QUERY, consistency=Consistency.STRONG)
    sides = {old: set(known), second: {one.id for one in new}}
    client.set_alias("both", old)
    time.sleep(0.2)
    stopped, wrong, seen = threading.Event(), [], set()

    def search() -> None:
        with Client(scalable_mesh.address) as searching:
            while not stopped.wait(EFFORT.pause_s):
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
        client.set_alias("both", second if number % 2 == 0 else old)
        time.sleep(float(np.random.default_rng(number).uniform(0.05, 0.2)))
    stopped.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
    assert seen == {old, second}


@contextmanager
def mesh_up(data, *options: str):
    command = [*MMESH, "up", "--data", str(data), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--reranker", "none", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        words = process.stdout.readline().split()
        assert words[:1] == ["ready"], process.stderr.read()
        yield words[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_the_command_scales_the_mesh_that_runs_on_a_folder(tmp_path, command_here):
    data = tmp_path / "data"
    data.mkdir()

    def scale(*options: str) -> tuple[int, str, str]:
        return command_here("scale", "--data", data, *options, env={}, folder=tmp_path)

    code, _, errors = scale("--shards", "2")
    assert code == 1
    assert f"no mesh runs on {data}" in errors
    with mesh_up(data, "--replicas", "2") as address, Client(address) as client:
        code, output, errors = scale("--shards", "2", "--replicas", "1")
        assert (code, errors) == (0, "")
        lines = output.splitlines()
        assert lines[0] == "loading index-0-of-2, index-1-of-2"
        assert lines[-1] == "the mesh has 2 shards, 1 process each"
        status = client.get_status()
        places = [(one.role.value, one.shard, one.shard_count) for one in status.services]
        assert places == [("encoder", 0, 0), ("index", 0, 2), ("index", 1, 2)]
        assert status.shard_count == 2
        assert not (data / "scale.json").exists()
        assert scale("--shards", "0")[0] == 2
    assert scale("--shards", "2")[0] == 1
    assert not os.path.exists(data / "scale.json")
