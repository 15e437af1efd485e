"""The reranker engine: judges in rounds, most promising first, until done or out of time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mmesh.content import Content
from mmesh.errors import InvalidField, MmeshError, Overloaded, Unavailable
from mmesh.models.protocol import JudgeInfo, JudgeModel
from mmesh.serving.deadline import Deadline
from services.reranker import metrics

RESERVE = 0.1
"""Share of the time that is kept for the answer's way back."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One score per candidate, or the reason why there is none; and where the time went."""

    scores: list[float | str]
    judge_s: float
    queue_s: float


class RerankerEngine:
    """Judges candidates with one model, a bounded number of calls at a time."""

    def __init__(
        self, model: JudgeModel, *, round_candidates: int, running_calls: int, max_waiting: int
    ) -> None:
        self._model = model
        self._round = round_candidates
        self._turns = asyncio.Semaphore(running_calls)
        self._max_waiting = max_waiting
        self._waiting = 0

    @property
    def info(self) -> JudgeInfo:
        """The model's own description."""
        return self._model.info

    def is_healthy(self) -> bool:
        """Tell whether the model can judge."""
        return self._model.is_healthy()

    async def judge(
        self, query: Content, instruction: str, candidates: Sequence[Content], deadline: Deadline
    ) -> Judged:
        """Return scores for `candidates`, best first if they are given so.

        Raises:
            Overloaded: too many calls wait.
            Unavailable: the model's engine is gone.
        """
        asked = time.perf_counter()
        await self._take_turn(deadline)
        begun = time.perf_counter()
        metrics.queue_seconds.observe(begun - asked)
        try:
            scores = await self._rounds(query, instruction, candidates, deadline.share(1 - RESERVE))
        finally:
            self._turns.release()
        seconds = time.perf_counter() - begun
        metrics.judge_seconds.observe(seconds)
        _count(scores)
        return Judged(scores, seconds, begun - asked)

    async def _take_turn(self, deadline: Deadline) -> None:
        if not self._model.is_healthy():
            raise Unavailable("the judge's engine is gone; the service restarts")
        if self._waiting >= self._max_waiting:
            raise Overloaded(f"{self._waiting} calls wait already")
        self._waiting += 1
        metrics.waiting_calls.set(self._waiting)
        try:
            async with asyncio.timeout(deadline.remaining()):
                await self._turns.acquire()
        finally:
            self._waiting -= 1
            metrics.waiting_calls.set(self._waiting)

    async def _rounds(
        self, query: Content, instruction: str, candidates: Sequence[Content], deadline: Deadline
    ) -> list[float | str]:
        scores: list[float | str] = []
        slowest = 0.0
        while len(scores) < len(candidates) and deadline.remaining() > slowest:
            start = time.perf_counter()
            round_ = candidates[len(scores) : len(scores) + self._round]
            try:
                async with asyncio.timeout(deadline.remaining()):
                    scores += await self._round_of(query, instruction, round_)
            except TimeoutError:
                break
            slowest = max(slowest, time.perf_counter() - start)
        return scores + ["DEADLINE"] * (len(candidates) - len(scores))

    async def _round_of(
        self, query: Content, instruction: str, candidates: Sequence[Content]
    ) -> list[float | str]:
        try:
            return list(await self._model.score(query, instruction, candidates))
        except InvalidField as error:
            if error.field.startswith("query"):
                raise
        return [await self._alone(query, instruction, candidate) for candidate in candidates]

    async def _alone(self, query: Content, instruction: str, candidate: Content) -> float | str:
        """Judge one candidate of a round that failed, so that only the bad one goes unjudged."""
        try:
            return (await self._model.score(query, instruction, [candidate]))[0]
        except MmeshError as error:
            if isinstance(error, Unavailable):
                raise
            return error.reason


def _count(scores: Sequence[float | str]) -> None:
    for score in scores:
        if isinstance(score, str):
            metrics.unjudged_total.labels(score).inc()
        else:
            metrics.judged_total.inc()
