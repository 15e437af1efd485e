"""`mmesh migrate`: from one model to another while searches, ingests and deletions go on."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from click.testing import CliRunner

from mmesh import Client, Content, Rerank, wire
from mmesh.api.encoder.v1 import encoder_pb2, encoder_pb2_grpc
from mmesh.candidates import Candidate
from mmesh.cli.main import cli
from mmesh.errors import FailedPrecondition, MmeshError, ModelMismatch
from mmesh.filter_language import parse_filter
from mmesh.search import Consistency
from tests.effort import EFFORT, needs_full_effort, patient

ALIAS, OLD, NEW = "pets", "pets-1", "pets-2"
QUERY = "harbour glacier violin"
WORDS = ("harbour", "glacier", "violin", "tractor", "orchid", "comet", "bakery", "lantern")
KEPT = [f"kept-{n:04}" for n in range(300)]
TIMEOUT_S = patient(10.0)


def candidate(candidate_id: str, revision: int = 0) -> Candidate:
    """Return a text whose words and attributes tell which revision it is."""
    random = np.random.default_rng([*candidate_id.encode(), revision])
    words = " ".join(random.choice(WORDS, 4))
    attributes = {"writer": candidate_id.partition("-")[0], "revision": revision}
    return Candidate(candidate_id, Content.of(f"{candidate_id} {words} {revision}"), attributes)


@pytest.fixture(scope="module")
def two_models(start_mesh, tmp_path_factory):
    """A mesh that serves lite's whole vectors, and their beginnings as another model."""
    data = tmp_path_factory.mktemp("two-models")
    mesh = start_mesh(data, 2, reranker="none", encoders=("lite", "lite,dim=192"))
    yield mesh
    mesh.close()


@pytest.fixture
def client(two_models) -> Iterator[Client]:
    with Client(two_models.address) as client:
        yield client
        for one in client.list_collections():
            client.delete_collection(one.name)


@pytest.fixture
def stubs(two_models) -> Iterator[dict[str, encoder_pb2_grpc.EncoderServiceStub]]:
    """The encoders by the fingerprint of their model, the first model first."""
    channels = [
        grpc.insecure_channel(two_models.address_of(name)) for name in ("encoder", "encoder-1")
    ]
    stubs = [encoder_pb2_grpc.EncoderServiceStub(channel) for channel in channels]
    request = encoder_pb2.GetModelRequest()
    yield {stub.GetModel(request, timeout=TIMEOUT_S).fingerprint: stub for stub in stubs}
    for channel in channels:
        channel.close()


@pytest.fixture
def new_model(stubs) -> str:
    return list(stubs)[1]


@pytest.fixture
def filled(client) -> Client:
    """The alias names a collection of the first model."""
    client.create_collection(OLD)
    client.set_alias(ALIAS, OLD)
    client.ingest(ALIAS, [candidate(one) for one in KEPT])
    client.search(ALIAS, QUERY, consistency=Consistency.STRONG)
    return client


@pytest.fixture
def migrate(two_models):
    """Run the command and return what it said, or why it failed."""

    def run(*arguments: str, fails: bool = False) -> str:
        options = ["--target-address", two_models.address]
        result = CliRunner().invoke(cli, ["migrate", *arguments, *options])
        assert (result.exit_code != 0) == fails, result.output or result.exception
        return f"{result.output}{result.exception or ''}"

    return run


def until_it_works(call, *arguments, **options):
    """Call until it succeeds: processes that die take calls with them that may be repeated."""
    until = time.monotonic() + patient(60)
    while True:
        try:
            return call(*arguments, timeout=TIMEOUT_S, **options)
        except MmeshError as error:
            if error.retry_after_s is None or time.monotonic() > until:
                raise
            time.sleep(0.1)


class Caller(threading.Thread):
    """Calls the mesh all the time until it is stopped, and keeps every failure."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address
        self.stopped = threading.Event()
        self.wrong: list[object] = []

    def run(self) -> None:
        with Client(self._address) as client:
            while not self.stopped.wait(EFFORT.pause_s):
                try:
                    self.call(client)
                except Exception as error:
                    self.wrong.append(error)
                    time.sleep(0.1)


class Searcher(Caller):
    """What was there all the time must be found every time, by the vectors of one model."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.models: list[str] = []

    def call(self, client: Client) -> None:
        found = client.search(
            ALIAS, QUERY, limit=1000, rerank=Rerank(0), require_all_shards=True, timeout=TIMEOUT_S
        )
        self.models.append(found.receipt.encoder_fingerprint)
        lost = set(KEPT) - {hit.id for hit in found.hits}
        if lost or found.degradations:
            self.wrong.append((sorted(lost)[:3], len(lost), found.degradations))


class Writer(Caller):
    """Writes, replaces and deletes candidates of its own; `truth` is what must be there."""

    def __init__(self, address: str, name: str) -> None:
        super().__init__(address)
        self._name, self._random = name, np.random.default_rng(list(name.encode()))
        self._revision = 0
        self.truth: dict[str, int] = {}

    def call(self, client: Client) -> None:
        steps = (self._upsert, self._ingest, self._delete, self._delete_old)
        steps[self._random.integers(len(steps))](client)

    def _some(self, count: int) -> list[str]:
        return [f"{self._name}-{n}" for n in self._random.choice(30, count, replace=False)]

    def _new(self, count: int) -> list[Candidate]:
        self._revision += 1
        return [candidate(one, self._revision) for one in self._some(count)]

    def _upsert(self, client: Client) -> None:
        made = self._new(4)
        name = f"{self._name}-{self._revision}"
        token = until_it_works(client.upsert_candidates, ALIAS, made, request_id=name).token
        self.truth |= {one.id: self._revision for one in made}
        found = until_it_works(
            client.search, ALIAS, made[0].content.text, token=token, require_all_shards=True
        )
        assert found.hits[0].id == made[0].id

    def _ingest(self, client: Client) -> None:
        made = self._new(12)
        report = client.ingest(ALIAS, made, batch_size=5)
        assert (report.stored, report.rejected) == (12, ())
        self.truth |= {one.id: self._revision for one in made}

    def _delete(self, client: Client) -> None:
        gone = self._some(5)
        until_it_works(client.delete_candidates, ALIAS, gone)
        self.truth = {i: revision for i, revision in self.truth.items() if i not in gone}

    def _delete_old(self, client: Client) -> None:
        oldest = self._revision - 8
        condition = f"writer == {self._name!r} and revision < {oldest}"
        until_it_works(client.delete_candidates_by_filter, ALIAS, parse_filter(condition))
        self.truth = {i: revision for i, revision in self.truth.items() if revision >= oldest}


@contextmanager
def under_load(address: str, searchers: int = 2) -> Iterator[tuple[list[Searcher], list[Writer]]]:
    """Search and write meanwhile; afterwards nothing may have gone wrong."""
    searching = [Searcher(address) for _ in range(searchers)]
    writing = [Writer(address, name) for name in ("ann", "bob")]
    callers = [*searching, *writing]
    for caller in callers:
        caller.start()
    try:
        yield searching, writing
    finally:
        for caller in callers:
            caller.stopped.set()
        for caller in callers:
            caller.join()
    assert not [one for caller in callers for one in caller.wrong]


def check_collection(client: Client, stubs, name: str, expected: dict[str, int]) -> None:
    """See that a collection has these revisions and nothing else, in vectors of its own model."""
    listed, rows, token = [], [], ""
    while True:
        page = client.list_candidates(name, page_size=200, page_token=token, include_vectors=True)
        listed += page.candidates
        rows.append(page.vectors)
        if not (token := page.next_token):
            break
    assert {one.id: one.attributes["revision"] for one in listed} == expected
    assert {one.id: one.content for one in listed} == {
        one: candidate(one, revision).content for one, revision in expected.items()
    }
    stub = stubs[client.get_collection(name).model_fingerprint]
    np.testing.assert_allclose(np.concatenate(rows), vectors_of(stub, listed), atol=1e-5)


def vectors_of(stub, candidates: Sequence[Candidate]) -> np.ndarray:
    parts = []
    for start in range(0, len(candidates), 200):
        inputs = [
            encoder_pb2.Input(content=wire.content_to_pb(one.content))
            for one in candidates[start : start + 200]
        ]
        request = encoder_pb2.EncodeRequest(inputs=inputs, role=encoder_pb2.ROLE_CANDIDATE)
        parts.append(wire.vectors_from_pb(stub.Encode(request, timeout=60).vectors))
    return np.concatenate(parts)


def truth_of(writers: Sequence[Writer]) -> dict[str, int]:
    kept = dict.fromkeys(KEPT, 0)
    return kept | {i: revision for one in writers for i, revision in one.truth.items()}


def test_an_alias_moves_there_and_back_under_searches_and_writes(
    two_models, filled, stubs, new_model, migrate, eventually, tmp_path
):
    old_model, _ = stubs
    page = tmp_path / "report.html"
    with under_load(two_models.address) as (searchers, writers):
        said = migrate(ALIAS, "--model", new_model, "--report", str(page))
        assert f"{OLD} and {NEW} are written together" in said
        assert "50 queries: " in said
        assert f"{ALIAS} is {NEW}" in said
        for live in (new_model, old_model, new_model)[: EFFORT.moves]:
            eventually(
                lambda live=live: all(one.models[-3:] == [live] * 3 for one in searchers),
                f"searches use {live}",
            )
            migrate("rollback" if live == new_model else "switch", ALIAS)
    for name in (OLD, NEW):
        check_collection(filled, stubs, name, truth_of(writers))
    assert {model for one in searchers for model in one.models} == {old_model, new_model}
    assert page.read_text().count("<section>") == 50
    assert NEW in page.read_text()
    assert f"{ALIAS} is {OLD}" in migrate("status", ALIAS)
    assert "switch it first" in migrate("finish", ALIAS, fails=True)
    migrate("switch", ALIAS)
    assert "deleted the old collection" in migrate("finish", ALIAS)
    assert [one.name for one in filled.list_collections()] == [NEW]
    assert filled.get_collection(ALIAS).settings.mirror == ""
    assert filled.ingest(ALIAS, [candidate("kept-after")]).stored == 1


def traced(call, *arguments: str) -> tuple[str, int]:
    """Return what it returns, and the most bytes that it held."""
    tracemalloc.start()
    try:
        return call(*arguments), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_pictures_are_compared_by_pictures_a_pair_at_a_time(
    client, pictures, new_model, migrate, tmp_path
):
    made = [Candidate(f"{n:02}", Content.of(pictures.png(n, 256))) for n in range(24)]
    client.create_collection(OLD)
    client.set_alias(ALIAS, OLD)
    command = ("--model", new_model, "--no-switch")
    assert "nothing was compared: there is nothing to ask with" in migrate(ALIAS, *command)
    client.ingest(ALIAS, made)
    page = tmp_path / "report.html"
    said, most = traced(migrate, ALIAS, *command, "--report", str(page))
    assert "24 queries: " in said
    assert page.read_text("utf-8").count("<section>") == 24
    assert page.read_text("utf-8").count("<img") == 24 * (1 + 2 * 10)
    assert most < page.stat().st_size / 4
    said, most = traced(migrate, ALIAS, *command)
    assert "24 queries: " in said
    assert most < page.stat().st_size / 24  # one pair with its pictures


@needs_full_effort
def test_whoever_dies_on_the_way_the_same_command_goes_on(
    two_models, filled, stubs, new_model, migrate, eventually
):
    command = [sys.executable, "-c", "from mmesh.cli import main; main()", "migrate", ALIAS]
    command += ["--model", new_model, "--no-switch", "--target-address", two_models.address]

    def filled_so_far() -> int:
        found = until_it_works(filled.list_collections)
        return sum(sum(one.candidates.values()) for one in found if one.name == NEW)

    filled.ingest(ALIAS, [candidate(f"more-{n:04}") for n in range(600)])
    with under_load(two_models.address, searchers=0) as (_, writers):
        for victims in (["gateway"], ["index-0", "encoder-1"]):
            before = filled_so_far()
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
                eventually(lambda before=before: filled_so_far() > before + 64, "it is filled")
                for victim in victims:
                    two_models.kill(victim)
                time.sleep(0.5)
                running.send_signal(signal.SIGKILL)
            two_models.wait_serving()
        assert filled_so_far() < 900
        migrate(ALIAS, "--model", new_model)
    for name in (OLD, NEW):
        expected = truth_of(writers) | {f"more-{n:04}": 0 for n in range(600)}
        check_collection(filled, stubs, name, expected)
    assert filled.get_collection(ALIAS).name == NEW


def test_a_migration_that_is_cancelled_leaves_the_old_collection_alone(
    filled, stubs, new_model, migrate
):
    migrate(ALIAS, "--model", new_model, "--no-switch")
    assert "deleted the new collection with 300" in migrate("cancel", ALIAS)
    assert "is not being migrated" in migrate("status", ALIAS, fails=True)
    check_collection(filled, stubs, OLD, dict.fromkeys(KEPT, 0))
    filled.upsert_candidates(ALIAS, [candidate("kept-0000", 1)])


def test_what_cannot_be_migrated_is_refused_in_words(filled, new_model, migrate):
    assert "cannot move" in migrate(OLD, "--model", new_model, fails=True)
    assert "they serve lite" in migrate(ALIAS, "--model", "unheard-of", fails=True)
    assert "the name of several" in migrate(ALIAS, "--model", "lite", fails=True)
    same = filled.get_collection(OLD).model_fingerprint
    assert "already" in migrate(ALIAS, "--model", same, fails=True)
    assert [one.name for one in filled.list_collections()] == [OLD]
    migrate(ALIAS, "--model", new_model, "--no-switch")
    assert "exists for model" in migrate(ALIAS, "--model", same, fails=True)


def test_a_pair_that_was_cut_apart_is_never_switched_to(filled, new_model, migrate):
    migrate(ALIAS, "--model", new_model, "--no-switch")
    filled.update_collection(OLD, recall_target=0.9)
    assert f"{ALIAS} is {OLD}" in migrate("status", ALIAS)
    filled.update_collection(OLD, mirror="")
    filled.upsert_candidates(ALIAS, [candidate("kept-0000", 1)])
    assert "not being migrated" in migrate("switch", ALIAS, fails=True)
    assert "no longer in step" in migrate(ALIAS, "--model", new_model, fails=True)
    filled.delete_collection(NEW)
    assert f"{ALIAS} is {NEW}" in migrate(ALIAS, "--model", new_model)
    [stored] = filled.batch_get_candidates(ALIAS, ["kept-0000"])
    assert stored.attributes["revision"] == 1


def test_collections_of_two_models_are_served_side_by_side(client, stubs):
    for number, model in enumerate(stubs):
        made = client.create_collection(f"of-{number}", model=model)
        assert made.model_fingerprint == model
        client.ingest(made.name, [candidate(one) for one in KEPT[:20]])
        found = client.search(made.name, QUERY, consistency=Consistency.STRONG)
        assert found.receipt.encoder_fingerprint == model
        check_collection(client, stubs, made.name, dict.fromkeys(KEPT[:20], 0))
    roles = [one.role.value for one in client.get_status().services]
    assert roles == ["encoder", "encoder", "index", "index"]
    with pytest.raises(ModelMismatch, match="they serve lite"):
        client.create_collection("of-none", model="unheard-of")
    with pytest.raises(FailedPrecondition, match="no mirror"):
        client.ingest("of-0", [candidate("kept-0000")], fill=True)
