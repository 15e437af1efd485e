"""`mmesh negatives --snapshot`: the same bytes whatever is written, and what ends it."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from mmesh.aio import AsyncClient
from mmesh.api.index.v1 import collection_service_pb2, collection_service_pb2_grpc
from mmesh.candidates import Candidate
from mmesh.content import Content, Modality
from mmesh.errors import CollectionNotFound, FailedPrecondition
from mmesh.evaluation.datasets.dataset import Query
from mmesh.evaluation.options import Effort
from mmesh.search import Degradation
from mmesh.training.mining.drawing import Rules
from mmesh.training.mining.files import read_facts, read_negatives
from mmesh.training.mining.live import Miner
from mmesh.training.mining.questions import Question

WORDS = "harbour glacier violin tractor orchid comet bakery lantern canyon piano".split()  # noqa: SIM905
RULES = ("--top", 20, "--below", 8)


def text(number: int) -> Content:
    return Content.of(f"{WORDS[number % 10]} {WORDS[number // 10 % 10]}")


@pytest.fixture
def pool(client) -> Iterator[str]:
    """80 texts, of which many have the same vector and so the same score."""
    name = f"pool-{uuid.uuid4().hex[:8]}"
    client.create_collection(name)
    client.upsert_candidates(name, [Candidate(f"t{n:03}", text(n * 7)) for n in range(80)])
    yield name
    client.delete_collection(name)


@pytest.fixture
def snapshot(client, pool) -> Iterator[str]:
    name = f"{pool}-then"
    client.copy_collection(pool, name)
    yield name
    with suppress(CollectionNotFound):
        client.delete_collection(name)


@pytest.fixture
def mine(mesh, command_here, tmp_path, pool) -> Callable[..., tuple[int, str, bytes]]:
    """Mine for queries of all answers; return exit code, what was said, and the file's bytes."""
    queries, out = tmp_path / "queries.jsonl", tmp_path / "out.parquet"
    rows = [
        {"id": f"q{n}", "text": text(n * 7).text, "relevant": [f"t{n:03}"], "target": "text"}
        for n in range(0, 80, 2)
    ]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*options: object, of: str = pool) -> tuple[int, str, bytes]:
        out.unlink(missing_ok=True)
        code, said, errors = command_here(
            "negatives", of, "--queries", queries, "--out", out, *RULES, *options,
            env={"MMESH_TARGET_ADDRESS": mesh.address}, folder=tmp_path,
        )  # fmt: skip
        return code, said + errors, out.read_bytes() if out.exists() else b""

    return run


@contextmanager
def written(client, pool: str) -> Iterator[list[int]]:
    """Candidates come, change and go all the time meanwhile, those that are mined among them."""
    done, count = threading.Event(), [0]

    def write() -> None:
        while not done.is_set():
            n = count[0]
            new = [Candidate(f"new{n:03}", text(n)), Candidate(f"t{n * 3 % 80:03}", text(n + 5))]
            client.upsert_candidates(pool, new)
            client.delete_candidates(pool, [f"t{n * 5 % 80:03}", f"new{n - 9:03}"])
            count[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield count
    finally:
        done.set()
        writer.join()


def test_a_snapshot_gives_the_same_bytes_whatever_is_written(
    mine, client, pool, snapshot, tmp_path
):
    code, said, first = mine("--snapshot", snapshot)
    assert code == 0, said
    files = []
    with written(client, pool) as count:
        for options in ((), ("--batch-size", 3, "--in-flight", 7), ("--batch-size", 1)):
            code, said, found = mine("--snapshot", snapshot, *options)
            assert (code, "written" in said) == (0, False), said
            files.append(found)
    assert count[0] > 3
    assert files == [first] * 3
    assert mine("--snapshot", snapshot)[2] == first
    facts = read_facts(tmp_path / "out.parquet")
    made = client.get_collection(snapshot)
    assert (facts["collection"], facts["snapshot"]) == (pool, snapshot)
    assert (facts["token"], facts["fingerprint"]) == (made.token, made.model_fingerprint)
    assert (facts["seed"], facts["rules"]["top"], facts["writes_meanwhile"]) == (0, 20, 0)
    rows = list(read_negatives(tmp_path / "out.parquet"))
    for options in (("--snapshot", snapshot, "--seed", 1), ()):  # the collection is another by now
        assert mine(*options)[0] == 0
        assert list(read_negatives(tmp_path / "out.parquet")) != rows


def test_the_judge_reads_what_the_snapshot_has(mine, client, pool, snapshot):
    judged = ("--snapshot", snapshot, "--judge", 0.5, "--count", 9)
    code, said, first = mine(*judged)
    assert code == 0, said
    client.delete_candidates(pool, [f"t{n:03}" for n in range(0, 80, 2)])
    assert mine(*judged)[2] == first


class Hurried(AsyncClient):
    """Finds a reranker that does not answer in time."""

    async def search_batch(self, searches, **options):
        outcomes = await super().search_batch(searches, **options)
        if not searches[0].rerank.candidates:
            return outcomes
        away = (Degradation("RERANK_UNAVAILABLE", "its time ran out"),)
        return [replace(one, degradations=away) for one in outcomes]


def test_what_was_not_judged_in_time_is_told_and_of_a_snapshot_not_written(
    mine, snapshot, monkeypatch, tmp_path
):
    monkeypatch.setattr("mmesh.cli.commands.negatives.AsyncClient", Hurried)
    code, said, found = mine("--snapshot", snapshot, "--judge", 0.5)
    assert (code, found) == (1, b"")
    assert "40 queries were not answered, or judged, in time" in said
    code, said, _ = mine("--judge", 0.5)
    assert code == 0
    assert "not answered, or judged, in time: 40 queries" in said
    assert read_facts(tmp_path / "out.parquet")["late"] == 40


def test_a_snapshot_that_was_dropped_is_named(mine, client, snapshot):
    client.delete_collection(snapshot)
    code, said, found = mine("--snapshot", snapshot)
    assert (code, found) == (1, b"")
    assert f"no collection is named '{snapshot}'" in said
    assert "COLLECTION_NOT_FOUND" in said


def test_what_can_be_written_is_no_snapshot(mine, pool):
    code, said, found = mine("--snapshot", pool)
    assert (code, found) == (1, b"")
    assert "is no snapshot" in said


def test_a_snapshot_of_another_model_is_refused(mine, mesh, client, open_channel):
    name = f"other-{uuid.uuid4().hex[:8]}"
    index = next(name for name in mesh.names if name.startswith("index"))
    stub = collection_service_pb2_grpc.CollectionServiceStub(open_channel(mesh.address_of(index)))
    stub.CreateCollection(
        collection_service_pb2.CreateCollectionRequest(
            name=name, dim=2, model_fingerprint="another", settings={"read_only": True}
        )
    )
    try:
        code, said, found = mine("--snapshot", name)
    finally:
        client.delete_collection(name)
    assert (code, found) == (1, b"")
    assert "'another'" in said
    assert "MODEL_MISMATCH" in said


def questions(at: int, then: Callable[[], object]) -> Iterator[Question]:
    """Ten questions; something happens before one of them is asked."""
    for n in range(10):
        if n == at:
            then()
        query = Query(f"q{n}", text(n).text, None, f"{n}")
        yield Question(query, ("t000",), Modality.TEXT)


@pytest.mark.parametrize("at", [1, 9])
@pytest.mark.parametrize("what", ["dropped", "made anew", "written"])
async def test_what_happens_to_a_snapshot_while_it_is_mined_ends_that(
    mesh, client, pool, snapshot, what, at
):
    def happen() -> None:
        if what == "written":
            client.update_collection(snapshot, read_only=False)
            client.delete_candidates(snapshot, ["t001"])
            return
        client.delete_collection(snapshot)
        if what == "made anew":
            client.copy_collection(pool, snapshot)

    error = CollectionNotFound if what == "dropped" else FailedPrecondition
    async with AsyncClient(mesh.address) as searching:
        collection = await searching.get_collection(snapshot)
        miner = Miner(searching, collection, Rules(20, 8), 0, Effort(1, 1))
        with pytest.raises(error, match=snapshot):
            async for _ in miner.mine(questions(at, happen)):
                pass
