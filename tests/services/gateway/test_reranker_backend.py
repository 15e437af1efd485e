"""The reranker's client over a real channel: a judge that hangs is waited for by few searches."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from mmesh import wire
from mmesh.api.reranker.v1 import reranker_pb2, reranker_pb2_grpc
from mmesh.content import Content, Modality
from mmesh.errors import DeadlineExceeded, MmeshError, Unavailable
from mmesh.serving.deadline import Deadline
from services.gateway import reranker_backend
from services.gateway.reranker_backend import FAILURES, RerankerBackend
from tests.effort import patient

SEES = {"reads texts": Modality.TEXT, "sees pictures": Modality.IMAGE}
IN_TIME_S, LATE_S, PAUSE_S = 30.0, 0.05, 0.2


class Judge(reranker_pb2_grpc.RerankerServiceServicer):
    """Scores all candidates alike, unless it is told to hang or to refuse."""

    def __init__(self) -> None:
        self.calls = 0
        self.hangs = False
        self.refuses: grpc.StatusCode | None = None
        self.asked: list[list[str]] = []
        """The candidates of each call."""
        self.fails_after: int | None = None
        self.scored = 1000
        """Of each call, those that have a score."""
        self.name, self.models = "reads texts", 0
        self.is_asked_again, self.knows = asyncio.Event(), asyncio.Event()
        """Cleared, nobody hears who judges."""
        self.knows.set()

    async def GetModel(self, request, context):
        self.models += 1
        if self.models > 1:
            self.is_asked_again.set()
        await self.knows.wait()
        modality = reranker_pb2.Trust(query_modality=wire.modality_to_pb(SEES[self.name]))
        modality.text_weight = 1.0
        return reranker_pb2.GetModelResponse(
            name=self.name, fingerprint=self.name, trust=[modality]
        )

    async def Rerank(self, request, context):
        self.calls += 1
        if self.hangs:
            await asyncio.sleep(IN_TIME_S)
        if self.refuses:
            await context.abort(self.refuses, "full")
        self.asked.append([candidate.parts[0].text for candidate in request.candidates])
        if self.fails_after is not None and len(self.asked) > self.fails_after:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        scores = [reranker_pb2.JudgedScore(score=len(c.parts[0].text)) for c in request.candidates]
        scores[self.scored :] = [reranker_pb2.JudgedScore()] * len(scores[self.scored :])
        return reranker_pb2.RerankResponse(scores=scores, model_fingerprint=self.name)


@pytest.fixture
async def judge():
    return Judge()


@pytest.fixture
async def backend(judge, monkeypatch):
    monkeypatch.setattr(reranker_backend, "LEAST_S", LATE_S / 2)
    monkeypatch.setattr(reranker_backend, "PAUSE_S", PAUSE_S)
    server = grpc.aio.server()
    reranker_pb2_grpc.add_RerankerServiceServicer_to_server(judge, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    backend = RerankerBackend(f"127.0.0.1:{port}")
    backend.start()
    try:
        await rerank(backend, IN_TIME_S)
        yield backend
    finally:
        await backend.close()
        await server.stop(None)


async def rerank(backend: RerankerBackend, seconds: float) -> None:
    content = Content.of("a lighthouse")
    await backend.rerank(content, "", [content], Deadline.after(seconds))


LARGE = [Content.of("x" * size) for size in (4, 5, 3, 12, 1, 2)]


@pytest.mark.parametrize(
    ("image_tokens", "fails_after", "asked", "scores"),
    [
        (0, None, [[4, 5], [3], [12], [1, 2]], [4, 5, 3, 12, 1, 2]),
        (0, 2, [[4, 5], [3], [12]], [4, 5, 3, None, None, None]),
        (9, None, [[4, 5, 3, 12, 1, 2]], [4, 5, 3, 12, 1, 2]),
    ],
)
async def test_large_candidates_are_judged_by_several_calls(
    backend, judge, monkeypatch, image_tokens, fails_after, asked, scores
):
    monkeypatch.setattr(reranker_backend, "CALL_BYTES", 10)
    judge.asked, judge.fails_after = [], fails_after
    verdict = await backend.rerank(
        Content.of("q"), "", LARGE, Deadline.after(IN_TIME_S), image_tokens
    )
    assert [[len(text) for text in call] for call in judge.asked] == asked
    assert verdict.scores == scores
    assert verdict.fingerprint == judge.name


async def test_a_judge_whose_time_was_too_short_is_not_asked_for_more(backend, judge, monkeypatch):
    monkeypatch.setattr(reranker_backend, "CALL_BYTES", 10)
    judge.asked, judge.scored = [], 1
    verdict = await backend.rerank(Content.of("q"), "", LARGE, Deadline.after(IN_TIME_S))
    assert len(judge.asked) == 1
    assert verdict.scores == [4, None, None, None, None, None]


async def test_scores_of_another_judge_are_left_out(backend, judge, monkeypatch):
    """Models do not compare, and one may be replaced between two calls."""
    monkeypatch.setattr(reranker_backend, "CALL_BYTES", 10)
    ask = backend._ask

    async def replaced(*given):
        verdict = await ask(*given)
        judge.name = "sees pictures"
        return verdict

    monkeypatch.setattr(backend, "_ask", replaced)
    verdict = await backend.rerank(Content.of("q"), "", LARGE, Deadline.after(IN_TIME_S))
    assert verdict.fingerprint == "reads texts"
    assert verdict.scores == [4, 5, None, None, None, None]


async def open_circuit(backend: RerankerBackend, judge: Judge) -> None:
    judge.hangs = True
    for _ in range(FAILURES):
        with pytest.raises(DeadlineExceeded):
            await rerank(backend, LATE_S)


async def test_a_judge_that_hangs_is_asked_no_more_until_one_call_has_tried_it(backend, judge):
    await open_circuit(backend, judge)
    asked = judge.calls
    with pytest.raises(Unavailable, match="was late just now"):
        await rerank(backend, IN_TIME_S)
    assert judge.calls == asked
    judge.hangs = False
    await asyncio.sleep(PAUSE_S)
    both = await asyncio.gather(
        *(rerank(backend, IN_TIME_S) for _ in range(2)), return_exceptions=True
    )
    assert [type(one) for one in both] == [type(None), Unavailable]
    await rerank(backend, IN_TIME_S)


async def test_lateness_counts_when_the_caller_gives_up_first(backend, judge):
    judge.hangs = True
    for _ in range(FAILURES):
        deadline = Deadline.after(LATE_S)
        with pytest.raises((TimeoutError, DeadlineExceeded)):
            async with asyncio.timeout(deadline.remaining()):
                await rerank(backend, deadline.remaining())
    with pytest.raises(Unavailable, match="was late just now"):
        await rerank(backend, IN_TIME_S)


async def test_callers_who_go_away_say_nothing_of_the_judge(backend, judge):
    judge.hangs = True
    for _ in range(2 * FAILURES):
        call = asyncio.create_task(rerank(backend, IN_TIME_S))
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    judge.hangs = False
    await rerank(backend, IN_TIME_S)


async def test_a_judge_that_is_away_is_used_as_soon_as_it_is_back(backend, judge):
    judge.refuses = grpc.StatusCode.UNAVAILABLE
    for _ in range(2 * FAILURES):
        with pytest.raises(Unavailable, match="does not answer"):
            await rerank(backend, IN_TIME_S)
    judge.refuses = None
    await rerank(backend, IN_TIME_S)


async def test_an_answer_between_failures_keeps_the_circuit_closed(backend, judge):
    for _ in range(FAILURES):
        judge.hangs = True
        with pytest.raises(DeadlineExceeded):
            await rerank(backend, LATE_S)
        judge.hangs, judge.refuses = False, grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(MmeshError, match="full"):
            await rerank(backend, IN_TIME_S)
        judge.refuses = None
    await rerank(backend, IN_TIME_S)


async def trusted(backend: RerankerBackend) -> set[Modality]:
    return set((await backend.judge(Deadline.after(IN_TIME_S))).weights)


async def test_the_status_tells_of_a_successor_too(backend, judge):
    assert await trusted(backend) == {Modality.TEXT}
    judge.name = "sees pictures"
    (status,) = await backend.status(Deadline.after(IN_TIME_S))
    assert status.detail == "sees pictures"
    assert await trusted(backend) == {Modality.IMAGE}


async def test_a_successor_of_a_judge_that_has_no_say_is_found(backend, judge, monkeypatch):
    assert await trusted(backend) == {Modality.TEXT}
    judge.name = "sees pictures"
    monkeypatch.setattr(reranker_backend, "RENEWED_S", 0.0)
    until = time.monotonic() + patient(5)
    while await trusted(backend) != {Modality.IMAGE}:
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


async def test_a_judge_that_is_heard_of_is_not_asked_about(backend, judge):
    for _ in range(5):
        await trusted(backend)
        await rerank(backend, IN_TIME_S)
    assert judge.models == 1


async def test_nobody_waits_for_news_of_the_judge(backend, judge, monkeypatch):
    await trusted(backend)
    judge.knows.clear()
    monkeypatch.setattr(reranker_backend, "RENEWED_S", -1.0)
    async with asyncio.timeout(patient(2)):
        assert await trusted(backend) == {Modality.TEXT}
        await judge.is_asked_again.wait()
        assert await trusted(backend) == {Modality.TEXT}
    assert judge.models == 2, "one question at a time"
