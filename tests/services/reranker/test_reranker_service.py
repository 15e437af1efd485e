"""The reranker over gRPC, with a judge at the protocol's seam, and with the real vLLM engine."""

import asyncio
import importlib.util
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from mmesh import Client, wire
from mmesh.api.reranker.v1 import reranker_pb2 as pb
from mmesh.api.reranker.v1 import reranker_pb2_grpc as rpc
from mmesh.candidates import Candidate
from mmesh.content import Content, Modality
from mmesh.errors import InvalidField, Unavailable
from mmesh.models.protocol import JudgeInfo
from mmesh.serving.host import Host
from mmesh.status import error_of
from services.reranker.config import RerankerSettings
from services.reranker.engine import RerankerEngine
from services.reranker.servicer import RerankerServicer

HALF = dict.fromkeys(Modality, 0.5)


class Judge:
    """Scores by length, as slowly as it is told; refuses one word, and dies of another."""

    info = JudgeInfo("length", "length-1", "t@1:abc", HALF, {Modality.TEXT: 0.5}, False)

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.healthy = True
        self.calls = []

    async def score(self, query, instruction, candidates):
        self.calls.append(len(candidates))
        await asyncio.sleep(self.seconds)
        texts = [candidate.text for candidate in candidates]
        if "bad" in texts:
            raise InvalidField(f"candidates[{texts.index('bad')}].parts[0].text", "is bad")
        if "deadly" in texts:
            self.healthy = False
            raise Unavailable("the engine is gone")
        return [float(len(text)) for text in texts]

    def is_healthy(self):
        return self.healthy

    async def close(self):
        pass


@asynccontextmanager
async def serving(judge, **limits):
    host = Host("reranker", RerankerSettings(drain_s=0, grace_s=1))
    chosen = {"round_candidates": 2, "running_calls": 1, "max_waiting": 1} | limits
    servicer = RerankerServicer(RerankerEngine(judge, **chosen))
    name = "mmesh.api.reranker.v1.RerankerService"
    host.add(rpc.add_RerankerServiceServicer_to_server, servicer, name)
    await host.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{host.port}") as channel:
        yield rpc.RerankerServiceStub(channel)
    await host.drain()


def request(*texts):
    candidates = [wire.content_to_pb(Content.of(text)) for text in texts]
    return pb.RerankRequest(query=wire.content_to_pb(Content.of("q")), candidates=candidates)


def scores_of(reply):
    return [s.score if s.HasField("score") else s.problem for s in reply.scores]


async def test_every_candidate_gets_its_score_in_order():
    judge = Judge()
    async with serving(judge) as stub:
        reply = await stub.Rerank(request("aaa", "a", "aa"))
    assert scores_of(reply) == [3, 1, 2]
    assert (reply.model_fingerprint, reply.template) == ("length-1", "t@1:abc")
    assert judge.calls == [2, 1]


async def test_a_candidate_that_cannot_be_judged_does_not_spoil_the_others():
    async with serving(Judge()) as stub:
        reply = await stub.Rerank(request("aaa", "bad", "aa"))
    assert scores_of(reply) == [3, "INVALID_FIELD", 2]


async def test_what_is_not_judged_in_time_is_said():
    async with serving(Judge(seconds=0.3)) as stub:
        reply = await stub.Rerank(request(*"abcdef"), timeout=0.8)
    scores = scores_of(reply)
    assert scores[:2] == [1, 1]
    assert scores[-1] == "DEADLINE"


async def test_a_dead_engine_is_unavailable_with_a_pause():
    async with serving(Judge()) as stub:
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Rerank(request("deadly"))
            error = error_of(caught.value)
            assert (error.reason, error.retry_after_s) == ("UNAVAILABLE", 0.5)


async def test_too_many_calls_are_refused():
    async with serving(Judge(seconds=0.2)) as stub:
        calls = [asyncio.ensure_future(stub.Rerank(request("a"))) for _ in range(4)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    failed = [error_of(o) for o in outcomes if isinstance(o, grpc.aio.AioRpcError)]
    assert len(failed) == 2
    assert {error.reason for error in failed} == {"QUEUE_FULL"}


async def test_trust_is_told_for_each_query_modality():
    async with serving(Judge()) as stub:
        model = await stub.GetModel(pb.GetModelRequest())
    trust = {wire.modality_from_pb(t.query_modality): t.text_weight for t in model.trust}
    assert trust == {Modality.TEXT: 0.25, Modality.IMAGE: 0, Modality.IMAGE_TEXT: 0}


needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is absent: run `make setup-vllm`"
    ),
]


@pytest.fixture(scope="module")
def vllm_mesh(start_mesh, tmp_path_factory):
    """A mesh whose reranker is a tiny MLLM in the real engine."""
    from mmesh.models.tiny import build_tiny_qwen3_vl

    folder = tmp_path_factory.mktemp("tiny") / "qwen3-vl"
    build_tiny_qwen3_vl(folder)
    wanted = {"ENFORCE_EAGER": "true", "KV_CACHE_GIB": "0.1", "MAX_MODEL_LEN": "2048"}
    added = {f"MMESH_RERANKER_{name}": value for name, value in wanted.items()}
    os.environ.update(added)
    try:
        yield start_mesh(tmp_path_factory.mktemp("vllm-mesh"), shards=1, reranker=f"vllm:{folder}")
    finally:
        for name in added:
            del os.environ[name]


@pytest.mark.usefixtures("vllm_mesh")
class TestWithVllm:
    pytestmark = needs_vllm

    def test_hits_of_all_modalities_are_judged(self, vllm_mesh, new_collection, pictures):
        with Client(vllm_mesh.address) as client, new_collection(client) as collection:
            candidates = [
                Candidate("text", Content.of("a red square")),
                Candidate("picture", Content.of(pictures.png())),
                Candidate("both", Content.of(pictures.png(1), "a green square")),
            ]
            token = client.upsert_candidates(collection, candidates)
            result = client.search(collection, [pictures.png(2), "but blue"], token=token)
        assert {hit.id for hit in result.hits} == {"text", "picture", "both"}
        assert all(0 < (hit.rerank_score or 0) < 1 for hit in result.hits)
        assert result.receipt.reranker_template.startswith("true-false@1:")
        assert result.receipt.rerank_outcome.value == "full"

    def test_a_killed_engine_degrades_searches_and_comes_back(
        self, vllm_mesh, new_collection, eventually
    ):
        with Client(vllm_mesh.address) as client, new_collection(client) as collection:
            token = client.upsert_candidates(collection, [Candidate("a", Content.of("a cat"))])
            for child in children(vllm_mesh.pid("reranker")):
                os.kill(child, signal.SIGKILL)
            degraded = client.search(collection, "cat", token=token)
            assert [d.reason for d in degraded.degradations] == ["RERANK_UNAVAILABLE"]
            assert [hit.id for hit in degraded.hits] == ["a"]

            def whole():
                return not client.search(collection, "cat", token=token).degradations

            eventually(whole, "the engine judges again", 120)


def children(pid):
    """Return the processes that `pid` started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]
