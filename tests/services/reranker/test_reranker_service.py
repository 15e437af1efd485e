"""The reranker over gRPC, with a judge at the protocol's seam; tests/mesh has the real engine."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from prometheus_client import REGISTRY

from mmesh import wire
from mmesh.api.reranker.v1 import reranker_pb2 as pb
from mmesh.api.reranker.v1 import reranker_pb2_grpc as rpc
from mmesh.content import Content, Modality
from mmesh.errors import FailedPrecondition, InternalError, InvalidField, Overloaded, Unavailable
from mmesh.models.protocol import JudgeInfo
from mmesh.serving.deadline import Deadline
from mmesh.serving.host import Host
from mmesh.wire.errors import error_of
from mmesh.wire.times import duration_to_pb
from mmesh.wire.transport import open_channel
from services.reranker.config import RerankerSettings
from services.reranker.engine import Question, RerankerEngine
from services.reranker.servicer import RerankerServicer
from tests.effort import patient

HALF = dict.fromkeys(Modality, 0.5)


class Judge:
    """Scores by length, as slowly as it is told; refuses one word, and dies of another.

    After `rounds` calls it hangs.
    """

    info = JudgeInfo("length", "length-1", "t@1:abc", HALF, {Modality.TEXT: 0.5}, False)

    def __init__(self, seconds=0.0, rounds=1000):
        self.seconds, self.rounds = seconds, rounds
        self.healthy = True
        self.calls = []

    async def score(self, query, instruction, candidates):
        self.calls.append(len(candidates))
        await asyncio.sleep(self.seconds if len(self.calls) <= self.rounds else 1000)
        texts = [candidate.text for candidate in candidates]
        if "bad" in texts:
            raise InvalidField(f"candidates[{texts.index('bad')}].parts[0].text", "is bad")
        if "deadly" in texts:
            self.healthy = False
            raise Unavailable("the engine is gone")
        return [float(len(text)) for text in texts]

    def image_tokens(self, content):
        return 10 * len(content.images)

    def is_healthy(self):
        return self.healthy

    async def close(self):
        pass


@asynccontextmanager
async def serving(judge, **limits):
    host = Host("reranker", RerankerSettings(drain_s=0, grace_s=1))
    defaults = {"round_candidates": 2, "running_calls": 1, "max_waiting": 1, "score_cache": 100}
    chosen = defaults | limits
    servicer = RerankerServicer(RerankerEngine(judge, **chosen))
    name = "mmesh.api.reranker.v1.RerankerService"
    host.add(rpc.add_RerankerServiceServicer_to_server, servicer, name)
    await host.start()
    async with open_channel(f"127.0.0.1:{host.port}") as channel:
        yield rpc.RerankerServiceStub(channel)
    await host.drain()


def request(*parts, query="q", **fields):
    """Ask for texts, or bytes that stand for pictures, of which the judge reads headers only."""
    candidates = [wire.content_to_pb(Content.of(part)) for part in parts]
    query = wire.content_to_pb(Content.of(query))
    return pb.RerankRequest(query=query, candidates=candidates, **fields)


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
    async with serving(Judge(rounds=1)) as stub:
        reply = await stub.Rerank(request(*"abcdef"), timeout=patient(1.0))
    assert scores_of(reply) == [1, 1, *["DEADLINE"] * 4]


async def test_a_dead_engine_is_unavailable_with_a_pause():
    async with serving(Judge()) as stub:
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Rerank(request("deadly"))
            error = error_of(caught.value)
            assert (error.reason, error.retry_after_s) == ("UNAVAILABLE", 0.5)


REFUSALS = [Overloaded("429"), FailedPrecondition("401"), InternalError("no answer")]


class RefusingJudge(Judge):
    """Refuses calls with `error`, or only those for one candidate."""

    def __init__(self, error, *, only_alone=False):
        super().__init__()
        self.error, self.only_alone = error, only_alone

    async def score(self, query, instruction, candidates):
        scores = await super().score(query, instruction, candidates)
        if len(candidates) == 1 or not self.only_alone:
            raise self.error
        return scores


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.reason)
async def test_a_judge_that_refuses_is_not_asked_again_for_each_candidate(error):
    judge = RefusingJudge(error)
    async with serving(judge, round_candidates=8) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Rerank(request(*"abcdefgh"))
    assert error_of(caught.value).reason == error.reason
    assert judge.calls == [8]


async def test_a_judge_that_refuses_candidates_alone_ends_the_call():
    async with serving(RefusingJudge(Overloaded("429"), only_alone=True)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Rerank(request("bad", "good"))
    assert error_of(caught.value).reason == "QUEUE_FULL"


async def test_running_and_waiting_calls_are_told_apart():
    def calls(state):
        return REGISTRY.get_sample_value(f"mmesh_reranker_{state}_calls")

    async with serving(Judge(seconds=0.2)) as stub:
        pair = [asyncio.ensure_future(stub.Rerank(request("a"))) for _ in range(2)]
        async with asyncio.timeout(patient(5)):
            while (calls("running"), calls("waiting")) != (1, 1):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await asyncio.gather(*pair)
    assert (calls("running"), calls("waiting")) == (0, 0)


async def test_the_time_of_calls_whose_callers_went_away_is_demand_all_the_same():
    """Or a reranker in which each call outlasts its caller would seem idle."""

    def observed(of):
        return REGISTRY.get_sample_value(f"mmesh_reranker_{of}_seconds_count")

    judge, question = Judge(rounds=0), Question(Content.of("q"), "", [Content.of("a")])
    engine = RerankerEngine(
        judge, round_candidates=2, running_calls=1, max_waiting=1, score_cache=100
    )
    judged, waited = observed("judge"), observed("queue")
    calls = [asyncio.create_task(engine.judge(question, Deadline.after(60))) for _ in range(2)]
    async with asyncio.timeout(patient(5)):
        while not judge.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert (observed("judge"), observed("queue")) == (judged + 1, waited + 2)


async def test_too_many_calls_are_refused():
    async with serving(Judge(seconds=patient(0.2))) as stub:
        calls = [asyncio.ensure_future(stub.Rerank(request("a"))) for _ in range(4)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    failed = [error_of(o) for o in outcomes if isinstance(o, grpc.aio.AioRpcError)]
    assert len(failed) == 2
    assert {error.reason for error in failed} == {"QUEUE_FULL"}


async def test_scores_are_remembered_by_query_instruction_and_candidate():
    judge = Judge()
    async with serving(judge) as stub:
        first = await stub.Rerank(request("aaa", "bad", "aa"))
        again = await stub.Rerank(request("aa", "new!", "aaa"))
        other = await stub.Rerank(request("aaa", query="another"))
        instructed = await stub.Rerank(request("aaa", instruction="look closely"))
        fresh = await stub.Rerank(request("aaa", fresh=True))
    assert (scores_of(again), again.remembered) == ([2, 4, 3], 2)
    assert [one.remembered for one in (first, other, instructed, fresh)] == [0, 0, 0, 0]
    assert judge.calls == [2, 1, 1, 1, 1, 1, 1, 1]  # a round that failed, then one by one


def budget_of(seconds):
    return pb.Budget(max_duration=duration_to_pb(seconds, ""))


async def test_remembered_scores_need_no_turn_and_no_time():
    async with serving(Judge(seconds=0.2)) as stub:
        await stub.Rerank(request("a"))
        running = asyncio.ensure_future(stub.Rerank(request(*"bcdefgh")))
        await asyncio.sleep(0.05)
        known = await stub.Rerank(request("a", budget=budget_of(0.01)))
        partial = await stub.Rerank(request("a", "i", budget=budget_of(0.01)))
        await running
    assert (scores_of(known), known.remembered) == ([1], 1)
    assert scores_of(partial) == [1, "DEADLINE"]


async def test_the_least_recently_asked_score_is_forgotten():
    async with serving(Judge(), score_cache=2) as stub:
        for texts in ("ab", "a", "c"):
            await stub.Rerank(request(*texts))
        reply = await stub.Rerank(request(*"abc"))
    assert reply.remembered == 2


async def test_no_more_candidates_are_judged_than_the_budget_has():
    judge = Judge()
    async with serving(judge) as stub:
        await stub.Rerank(request("aa"))
        reply = await stub.Rerank(request("a", "aa", "aaa", "aaaa", budget=pb.Budget(candidates=2)))
    assert scores_of(reply) == [1, 2, 3, "BUDGET"]


async def test_image_tokens_are_spent_on_the_query_and_then_best_first():
    pictures = [b"one", b"two", b"three"]
    async with serving(Judge()) as stub:
        budget = pb.Budget(image_tokens=20)
        reply = await stub.Rerank(request(*pictures, "text", query=b"picture", budget=budget))
        poor = await stub.Rerank(request("text", query=b"large", budget=pb.Budget(image_tokens=9)))
    assert scores_of(reply) == [0, "BUDGET", "BUDGET", 4]
    assert scores_of(poor) == ["BUDGET"]


async def test_a_budget_of_seconds_ends_judging_before_the_deadline():
    async with serving(Judge(rounds=1)) as stub:
        reply = await stub.Rerank(request(*"abcdef", budget=budget_of(patient(0.5))), timeout=90)
    assert scores_of(reply) == [1, 1, *["DEADLINE"] * 4]


@pytest.mark.parametrize(
    "budget",
    [{"candidates": -1}, {"max_duration": duration_to_pb(-1.5, "")}, {"image_tokens": -5}],
    ids=str,
)
async def test_a_budget_below_zero_is_refused(budget):
    async with serving(Judge()) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Rerank(request("a", budget=pb.Budget(**budget)))
    assert error_of(caught.value).metadata["field"] == f"budget.{next(iter(budget))}"


async def test_trust_is_told_for_each_query_modality():
    async with serving(Judge()) as stub:
        model = await stub.GetModel(pb.GetModelRequest())
    trust = {wire.modality_from_pb(t.query_modality): t.text_weight for t in model.trust}
    assert trust == {Modality.TEXT: 0.25, Modality.IMAGE: 0, Modality.IMAGE_TEXT: 0}
