"""The reranker engine: what is remembered, then rounds, most promising first, until spent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmesh.content import Content
from mmesh.errors import InvalidField, Overloaded, Unavailable
from mmesh.models.protocol import JudgeInfo, JudgeModel
from mmesh.serving.deadline import Deadline
from services.reranker import metrics
from services.reranker.budget import Budget, PairRate
from services.reranker.score_cache import ScoreCache

RESERVE = 0.1
"""Share of the time that is kept for the answer's way back."""
LATE, SPENT = "DEADLINE", "BUDGET"


@dataclass(frozen=True, slots=True)
class Question:
    """What a call asks: scores of `candidates`, most promising first."""

    query: Content
    instruction: str
    candidates: Sequence[Content]
    budget: Budget = field(default_factory=Budget)
    fresh: bool = False
    """Judge even what is remembered."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One score per candidate, or the reason why there is none; and where the time went."""

    scores: list[float | str]
    remembered: int
    judge_s: float
    queue_s: float


class RerankerEngine:
    """Judges candidates with one model, a bounded number of calls at a time."""

    def __init__(
        self,
        model: JudgeModel,
        *,
        round_candidates: int,
        running_calls: int,
        max_waiting: int,
        score_cache: int,
    ) -> None:
        self._model = model
        self._round = round_candidates
        self._turns = asyncio.Semaphore(running_calls)
        self._max_waiting = max_waiting
        self._waiting = 0
        self._cache = ScoreCache(score_cache, model.info)

    @property
    def info(self) -> JudgeInfo:
        """The model's own description."""
        return self._model.info

    def is_healthy(self) -> bool:
        """Tell whether the model can judge."""
        return self._model.is_healthy()

    async def judge(self, asked: Question, deadline: Deadline) -> Judged:
        """Return the scores that are remembered, and new ones as far as budget and time reach.

        Raises:
            InvalidField: the query cannot be judged by.
            Overloaded: too many calls wait, or the model has too much to do.
            Unavailable: the model's engine is gone.
            MmeshError: the model refuses or fails for what is no candidate's fault.
        """
        call = _Call(asked, self._cache)
        self._leave_out_what_is_too_dear(call)
        stop = asked.budget.deadline(deadline.share(1 - RESERVE))
        asked_at = time.perf_counter()
        has_turn = bool(call.due) and await self._take_turn(stop)
        begun = time.perf_counter()
        if has_turn:
            try:
                with metrics.running_calls.track_inprogress():
                    await self._rounds(call, stop)
            finally:
                self._turns.release()
                metrics.judge_seconds.observe(time.perf_counter() - begun)
        judge_s = time.perf_counter() - begun
        return Judged(call.finish(), call.remembered, judge_s, begun - asked_at)

    def _leave_out_what_is_too_dear(self, call: _Call) -> None:
        """Note what the budget does not pay for; pictures are counted only if it limits them."""
        asked, due = call.asked, call.due
        if asked.budget.image_tokens and due:
            query_tokens = self._model.image_tokens(asked.query)
            tokens = [self._model.image_tokens(asked.candidates[place]) for place in due]
        else:
            query_tokens, tokens = 0, [0] * len(due)
        affordable = asked.budget.affordable(query_tokens, tokens)
        for place, pays in zip(due, affordable, strict=True):
            if not pays:
                call.note(place, SPENT)

    async def _take_turn(self, stop: Deadline) -> bool:
        """Wait for one of the running calls to end; return False when the time was too short.

        The wait is measured however it ends, as judging is: autoscalers follow both, and would see
        an idle reranker where each call outlasts its caller.
        """
        if not self._model.is_healthy():
            raise Unavailable("the judge's engine is gone; the service restarts")
        if self._waiting >= self._max_waiting:
            raise Overloaded(f"{self._waiting} calls wait already")
        self._waiting += 1
        metrics.waiting_calls.set(self._waiting)
        since = time.perf_counter()
        try:
            async with asyncio.timeout(stop.remaining()):
                return await self._turns.acquire()
        except TimeoutError:
            return False
        finally:
            metrics.queue_seconds.observe(time.perf_counter() - since)
            self._waiting -= 1
            metrics.waiting_calls.set(self._waiting)

    async def _rounds(self, call: _Call, stop: Deadline) -> None:
        pace = PairRate(self._round)
        while call.due and (size := pace.next_size(stop.remaining())):
            start = time.perf_counter()
            places = call.due[:size]
            try:
                async with asyncio.timeout(stop.remaining()):
                    scores = await self._round_of(call.asked, places)
            except TimeoutError:
                return
            for place, score in zip(places, scores, strict=True):
                call.note(place, score)
            pace.note(len(places), time.perf_counter() - start)

    async def _round_of(self, asked: Question, places: Sequence[int]) -> list[float | str]:
        """Return an outcome for each place; when a candidate is refused, all are judged alone.

        What is no candidate's fault, such as a judge that has too much to do, ends the call: asked
        once more for each, it would have more to do.
        """
        candidates = [asked.candidates[place] for place in places]
        try:
            return list(await self._model.score(asked.query, asked.instruction, candidates))
        except InvalidField as error:
            if _is_about_query(error):
                raise
            if len(places) == 1:
                return [error.reason]
        return await self._each_alone(asked, places)

    async def _each_alone(self, asked: Question, places: Sequence[int]) -> list[float | str]:
        try:
            async with asyncio.TaskGroup() as group:
                alone = [group.create_task(self._round_of(asked, [place])) for place in places]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed.exceptions[0].__cause__
        return [outcome for task in alone for outcome in task.result()]


class _Call:
    """One call under way: each candidate's score, or the reason why it has none, or neither yet."""

    def __init__(self, asked: Question, cache: ScoreCache) -> None:
        self.asked = asked
        self._cache = cache
        scope = cache.scope(asked.query, asked.instruction)
        self._keys = [scope + candidate.digest() for candidate in asked.candidates]
        self._outcomes: list[float | str | None] = [None] * len(self._keys)
        if not asked.fresh:
            self._outcomes = [cache.get(key) for key in self._keys]
        self.remembered = len(self._keys) - len(self.due)
        metrics.score_cache_total.labels("hit").inc(self.remembered)
        metrics.score_cache_total.labels("miss").inc(len(self.due))

    @property
    def due(self) -> list[int]:
        """Places of the candidates that nothing is said of yet."""
        return [place for place, outcome in enumerate(self._outcomes) if outcome is None]

    def note(self, place: int, outcome: float | str) -> None:
        """Keep a score, which is remembered too, or a reason."""
        self._outcomes[place] = outcome
        if isinstance(outcome, str):
            metrics.unjudged_total.labels(outcome).inc()
        else:
            metrics.judged_total.inc()
            self._cache.put(self._keys[place], outcome)

    def finish(self) -> list[float | str]:
        """Return all outcomes; what is still due was too late."""
        for place in self.due:
            self.note(place, LATE)
        return [outcome for outcome in self._outcomes if outcome is not None]


def _is_about_query(error: InvalidField) -> bool:
    return error.field.startswith("query")
