"""Services that hang or leave: what still works, what is said of it, and what heals by itself."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from mmesh import Client, Rerank, ServiceRole, ServiceState, wire
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.api.gateway.v1 import gateway_pb2_grpc as rpc
from mmesh.errors import DeadlineExceeded, MmeshError, ShardUnavailable, Unavailable
from mmesh.search import Consistency, RerankOutcome
from tests.effort import patient

TEXTS, IMAGES = 40, 4
QUERY = "harbour glacier violin"
TIMEOUT_S = 3.0


@pytest.fixture(scope="module")
def own_mesh(start_mesh, tmp_path_factory):
    mesh = start_mesh(tmp_path_factory.mktemp("degraded"))
    yield mesh
    mesh.close()


@pytest.fixture(scope="module")
def own_client(own_mesh) -> Iterator[Client]:
    with Client(own_mesh.address) as client:
        yield client


@pytest.fixture(scope="module")
def filled(own_client, new_collection, new_candidates) -> Iterator[str]:
    with new_collection(own_client) as name:
        own_client.upsert_candidates(name, new_candidates(TEXTS, IMAGES))
        own_client.search(name, QUERY, consistency=Consistency.STRONG)
        yield name


@pytest.fixture(autouse=True)
def whole_again(own_mesh, own_client, filled, eventually) -> Iterator[None]:
    """After every test the mesh must find its way back to whole answers by itself."""
    yield

    def is_whole() -> bool:
        try:
            found = own_client.search(filled, QUERY, require_all_shards=True, timeout=TIMEOUT_S)
        except MmeshError:
            return False
        return not found.degradations and found.receipt.rerank_outcome is RerankOutcome.FULL

    eventually(is_whole, "answers are whole again")


def reasons(found) -> list[str]:
    return [degradation.reason for degradation in found.degradations]


def timed(call):
    start = time.monotonic()
    return call(), time.monotonic() - start


def test_a_reranker_that_hangs_costs_its_say_but_not_the_answer(own_mesh, own_client, filled):
    first_stage = own_client.search(filled, QUERY, rerank=Rerank(0))
    assert reasons(first_stage) == []
    with own_mesh.frozen("reranker"):
        found, took = timed(lambda: own_client.search(filled, QUERY, timeout=TIMEOUT_S))
    assert took < TIMEOUT_S
    assert reasons(found) == ["RERANK_UNAVAILABLE"]
    assert found.receipt.rerank_outcome is RerankOutcome.SKIPPED
    assert [hit.id for hit in found.hits] == [hit.id for hit in first_stage.hits]
    assert all(hit.rerank_score is None for hit in found.hits)


def test_a_reranker_gets_no_more_time_than_it_was_given(own_mesh, own_client, filled):
    with own_mesh.frozen("reranker"):
        found, took = timed(
            lambda: own_client.search(
                filled, QUERY, timeout=10 * TIMEOUT_S, rerank=Rerank(10, max_seconds=0.3)
            )
        )
    assert reasons(found) == ["RERANK_UNAVAILABLE"]
    assert took < patient(TIMEOUT_S / 2)  # it would wait for most of the 30 s


def test_a_reranker_that_dies_is_missed_and_comes_back(own_mesh, own_client, filled):
    own_mesh.kill("reranker")
    found = own_client.search(filled, QUERY, timeout=TIMEOUT_S)
    assert reasons(found) in ([], ["RERANK_UNAVAILABLE"])
    assert len(found.hits) == 10
    own_mesh.wait_serving("reranker")


@pytest.mark.parametrize("shard", ["index-0", "index-1"])
def test_a_shard_that_hangs_is_left_out_and_named(own_mesh, own_client, filled, shard):
    whole = own_client.search(filled, QUERY, limit=TEXTS + IMAGES, rerank=Rerank(0))
    with own_mesh.frozen(shard):
        found, took = timed(
            lambda: own_client.search(
                filled, QUERY, limit=TEXTS + IMAGES, rerank=Rerank(0), timeout=TIMEOUT_S
            )
        )
    assert took < TIMEOUT_S
    assert reasons(found) == ["SHARD_UNAVAILABLE"]
    assert f"shard {shard[-1]}" in found.degradations[0].message
    assert (found.coverage.shards_answered, found.coverage.shards_total) == (1, 2)
    assert 0 < len(found.hits) < len(whole.hits) == TEXTS + IMAGES
    scores = {hit.id: hit.retrieval_score for hit in whole.hits}
    assert {hit.id: hit.retrieval_score for hit in found.hits}.items() <= scores.items()
    again = own_client.search(filled, QUERY, limit=TEXTS + IMAGES, rerank=Rerank(0))
    assert (again.coverage.shards_answered, reasons(again)) == (2, [])
    assert [hit.id for hit in again.hits] == [hit.id for hit in whole.hits]


def test_who_asks_for_all_shards_gets_an_error_when_one_hangs(own_mesh, own_client, filled):
    with own_mesh.frozen("index-1"), pytest.raises(ShardUnavailable) as error:
        own_client.search(filled, QUERY, require_all_shards=True, timeout=TIMEOUT_S)
    assert error.value.metadata == {"shards": "1"}
    assert error.value.retry_after_s is not None


def test_a_shard_that_hangs_does_not_keep_the_others_from_sending_content(
    own_mesh, own_client, filled
):
    """The log is one: whichever process answers can read the content of all hits."""
    with own_mesh.frozen("index-1"):
        for _ in range(2):  # calls take the processes in turn, so one of two begins at the frozen
            found = own_client.search(
                filled, QUERY, include_content=True, rerank=Rerank(0), timeout=TIMEOUT_S
            )
            assert all(hit.content for hit in found.hits)


def test_a_shard_that_hangs_does_not_keep_the_log_from_being_read_and_written(
    own_mesh, own_client, filled, new_collection, new_candidates
):
    with new_collection(own_client) as name, own_mesh.frozen("index-0"):
        for n in range(2):
            own_client.upsert_candidates(
                name, new_candidates(2, prefix=f"n{n} "), timeout=TIMEOUT_S
            )
            assert own_client.get_collection(name, timeout=TIMEOUT_S)


def test_without_any_shard_a_search_fails_in_time(own_mesh, own_client, filled):
    with own_mesh.frozen("index-0"), own_mesh.frozen("index-1"):
        start = time.monotonic()
        with pytest.raises((ShardUnavailable, DeadlineExceeded)):
            own_client.search(filled, QUERY, timeout=1.0)
        assert time.monotonic() - start < patient(2.0)


def test_an_encoder_that_hangs_fails_new_queries_in_time_and_answers_known_ones(
    own_mesh, own_client, filled
):
    known = own_client.search(filled, QUERY)
    with own_mesh.frozen("encoder"):
        with pytest.raises(DeadlineExceeded):
            own_client.search(filled, "words that no cache knows", timeout=1.0)
        found = own_client.search(filled, QUERY, timeout=TIMEOUT_S)
    assert found.receipt.embedding_cached
    assert [hit.id for hit in found.hits] == [hit.id for hit in known.hits]


def test_the_status_names_what_hangs(own_mesh, own_client):
    assert own_client.get_status().is_serving
    with own_mesh.frozen("reranker"):
        status, took = timed(lambda: own_client.get_status(timeout=TIMEOUT_S))
    assert took < TIMEOUT_S
    stopped = [(s.role, s.state) for s in status.services if not s.is_serving]
    assert stopped == [(ServiceRole.RERANKER, ServiceState.UNREACHABLE)]


def is_back(client) -> bool:
    try:
        return bool(client.get_status(timeout=TIMEOUT_S))
    except Unavailable:
        return False


def test_a_gateway_told_to_stop_acknowledges_what_it_has_and_says_so(
    own_mesh, open_channel, own_client, new_collection, new_candidates, ids_in, eventually
):
    candidates = [wire.candidate_to_pb(one) for one in new_candidates(24)]
    with new_collection(own_client) as name:
        half_close = threading.Event()

        def messages() -> Iterator[pb.IngestRequest]:
            opening = pb.IngestOpen(collection=name, ingest_id=uuid.uuid4().hex)
            yield pb.IngestRequest(open=opening)
            for n in range(3):
                batch = candidates[8 * n : 8 * n + 8]
                yield pb.IngestRequest(batch=pb.IngestBatch(sequence=n + 1, candidates=batch))
            half_close.wait(30)

        stub = rpc.RetrievalServiceStub(open_channel(own_mesh.address))
        events, acked = [], 0
        for event in stub.Ingest(messages(), timeout=patient(30)):
            events.append(event.WhichOneof("event"))
            acked = max(acked, event.ack.through_sequence)
            if events[-1] == "ack" and "ack" not in events[:-1]:
                own_mesh.kill("gateway", signal.SIGTERM)
        half_close.set()  # the stream has ended before the client closed its half
        assert "draining" in events
        eventually(lambda: not own_mesh.is_serving("gateway"), "the old gateway is gone")
        own_mesh.wait_serving("gateway")
        eventually(lambda: is_back(own_client), "the channel has found the new gateway")
        stored = set(ids_in(own_client, name))
        assert {one.id for one in candidates[: 8 * acked]} <= stored
    assert any("gateway died (exit code 0)" in line for line in own_mesh.said)


def test_an_ingest_of_the_sdk_goes_on_over_gateways_that_are_told_to_stop(
    own_mesh, own_client, new_collection, new_candidates, ids_in
):
    candidates = new_candidates(300)
    due = [30, 150]

    def note(progress) -> None:
        if due and progress.stored >= due[0] and own_mesh.kill("gateway", signal.SIGTERM):
            due.pop(0)

    with new_collection(own_client) as name:
        report = own_client.ingest(name, candidates, batch_size=8, on_progress=note)
        assert not due
        assert (report.stored, report.rejected) == (len(candidates), ())
        assert ids_in(own_client, name) == sorted(one.id for one in candidates)


def test_calls_that_run_when_the_gateway_is_told_to_stop_are_finished(own_mesh, own_client, filled):
    text = "a text that takes a while " * 20_000
    outcome: list[object] = []

    def search() -> None:
        try:
            outcome.append(own_client.search(filled, text, timeout=patient(10)))
        except MmeshError as error:
            outcome.append(error)

    running = threading.Thread(target=search)
    running.start()
    time.sleep(0.05)
    own_mesh.kill("gateway", signal.SIGTERM)
    running.join()
    assert not isinstance(outcome[0], MmeshError), outcome[0]
    own_mesh.wait_serving()


def test_a_mesh_that_is_gone_is_unavailable_within_the_deadline():
    with Client("127.0.0.1:1") as client:
        start = time.monotonic()
        with pytest.raises(Unavailable):
            client.get_status(timeout=patient(5))
        assert time.monotonic() - start < patient(5)
