"""The searches of a task: many in flight, bounded, repeated while the mesh is away for a moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast

from mmesh.aio import AsyncClient
from mmesh.content import Content, Modality
from mmesh.errors import (
    CollectionFull,
    DeadlineExceeded,
    MessageTooLarge,
    MmeshError,
    ResourceExhausted,
    Unavailable,
)
from mmesh.evaluation.datasets.dataset import Query, Task
from mmesh.evaluation.live.answers import Answer, AnswerLog, Found
from mmesh.evaluation.live.contents import POOLS, content_of
from mmesh.evaluation.options import Effort, Options, Target
from mmesh.evaluation.rejections import NO_PICTURE, Rejections
from mmesh.evaluation.watching import Watcher
from mmesh.filters import AllOf, Filter, In
from mmesh.search import Hit, Rerank, Search, SearchResult

MAX_SEARCHES = 256
"""Searches that fit into a call."""
_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_LATE_ATTEMPTS = 3
"""Times that a search may miss its deadline until it counts as refused."""
Outcome = SearchResult | MmeshError


@dataclass(frozen=True, slots=True)
class Plan:
    """How the queries of one task are searched."""

    collection: str
    token: str
    """Of the write that every search must see."""
    task: Task
    options: Options
    within: tuple[str, ...]
    """Pools to search among; empty means the whole collection."""

    def searches(self, query: Query, content: Content) -> list[Search]:
        """Return the searches that answer a query."""
        options = self.options
        wanted = query.wanted or self.task.wanted
        targets: tuple[Modality | None, ...] = {
            Target.ANY: (None,), Target.WANTED: (wanted,), Target.EACH: tuple(Modality),
        }[options.target]  # fmt: skip
        return [
            Search(
                self.collection,
                content,
                query.instruction,
                target,
                options.limit_of(self.task, len(query.excluded)),
                self._filter(query),
                options.merge,
                Rerank(options.rerank),
                token=self.token,
                require_all_shards=True,
            )
            for target in targets
        ]

    def _filter(self, query: Query) -> Filter | None:
        conditions: list[Filter] = []
        if self.within:
            conditions.append(In(POOLS, self.within))
        if query.among:
            conditions.append(In("id", query.among))
        return AllOf(tuple(conditions)) if conditions else None

    def answer(self, query: Query, outcomes: Sequence[Outcome]) -> Answer:
        """Return the answer that the outcomes of a query's searches make."""
        results = [one for one in outcomes if isinstance(one, SearchResult)]
        refused = next((one for one in outcomes if isinstance(one, MmeshError)), None)
        if refused is not None:
            return Answer(query.id, refusal=f"{refused.reason}: {refused.message}"[:500])
        hits = [hit for result in results for hit in result.hits if hit.id not in query.excluded]
        if len(results) > 1:
            hits.sort(key=lambda hit: (-hit.retrieval_score, hit.id))
        kept = hits[: self.options.limit_of(self.task)]
        receipt = results[0].receipt
        return Answer(
            query.id,
            tuple(Found(hit.id, _score(hit, len(results)), hit.modality) for hit in kept),
            _seconds(results),
            sum(hit.rerank_score is not None for hit in hits),
            receipt.rerank_outcome.value if self.options.rerank else "",
            tuple(sorted({one.reason for result in results for one in result.degradations})),
            receipt.target_source,
            receipt.encoder_fingerprint,
            receipt.reranker_fingerprint,
        )


def _score(hit: Hit, lists: int) -> float:
    return hit.score if lists == 1 else hit.retrieval_score


def _seconds(results: Sequence[SearchResult]) -> dict[str, float]:
    found = {"total": sum(result.receipt.total_seconds for result in results)}
    for stage in (stage for result in results for stage in result.receipt.stages):
        found[stage.name] = found.get(stage.name, 0.0) + stage.seconds
    return {name: round(seconds, 6) for name, seconds in found.items()}


class Searcher:
    """Asks the queries of tasks and writes the answers down."""

    def __init__(self, client: AsyncClient, effort: Effort, watcher: Watcher) -> None:
        self._client, self._effort, self._watcher = client, effort, watcher
        self._answered_at = time.monotonic()
        self._done = 0

    async def run(
        self, plan: Plan, queries: Iterator[Query], log: AnswerLog, done: int
    ) -> Rejections:
        """Answer queries; return which could not be asked, for want of their picture.

        Raises:
            MmeshError: nothing was answered for `patience_s` seconds, or never will be.
        """
        self._answered_at, self._done = time.monotonic(), done
        rejections = Rejections()
        free = asyncio.Semaphore(self._effort.in_flight)
        try:
            async with asyncio.TaskGroup() as group:
                while batch := list(islice(queries, self._effort.batch)):
                    await free.acquire()
                    work = self._ask(plan, batch, log, rejections)
                    group.create_task(work).add_done_callback(lambda _: free.release())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return rejections

    async def _ask(
        self, plan: Plan, queries: list[Query], log: AnswerLog, rejections: Rejections
    ) -> None:
        asked = await asyncio.to_thread(_with_content, queries, rejections)
        searches = [plan.searches(query, content) for query, content in asked]
        outcomes = iter(await self._outcomes([one for many in searches for one in many]))
        log.append(
            plan.answer(query, list(islice(outcomes, len(many))))
            for (query, _), many in zip(asked, searches, strict=True)
        )
        self._done += len(queries)
        self._watcher.advance(self._done)

    async def _outcomes(self, searches: list[Search]) -> list[Outcome]:
        """Return an outcome for each search; those that may yet succeed are repeated."""
        outcomes: dict[int, Outcome] = {}
        pause, attempt = _PAUSE_S, 0
        while left := [number for number in range(len(searches)) if number not in outcomes]:
            attempt += 1
            for number, outcome in zip(left, await self._call(searches, left), strict=True):
                late = isinstance(outcome, DeadlineExceeded) and attempt >= _LATE_ATTEMPTS
                if late or not _passing(outcome):
                    outcomes[number] = outcome
                    self._answered_at, pause = time.monotonic(), _PAUSE_S
                elif time.monotonic() - self._answered_at > self._effort.patience_s:
                    raise cast(MmeshError, outcome)
            if len(outcomes) < len(searches):
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        return [outcomes[number] for number in range(len(searches))]

    async def _call(self, searches: list[Search], numbers: list[int]) -> list[Outcome]:
        """Return outcomes of one call, or of several when they do not fit into one."""
        if len(numbers) > MAX_SEARCHES:
            return await self._in_halves(searches, numbers)
        chosen = [searches[number] for number in numbers]
        try:
            return await self._client.search_batch(chosen, timeout=self._effort.timeout_s)
        except MessageTooLarge as error:
            if len(numbers) > 1:
                return await self._in_halves(searches, numbers)
            return [error]
        except MmeshError as error:
            if not _passing(error):
                raise
            return [error] * len(numbers)

    async def _in_halves(self, searches: list[Search], numbers: list[int]) -> list[Outcome]:
        half = len(numbers) // 2
        first = await self._call(searches, numbers[:half])
        return first + await self._call(searches, numbers[half:])


def _passing(outcome: Outcome) -> bool:
    """Tell whether the same search may succeed a little later."""
    passing = isinstance(outcome, Unavailable | ResourceExhausted | DeadlineExceeded)
    return passing and not isinstance(outcome, CollectionFull | MessageTooLarge)


def _with_content(queries: list[Query], rejections: Rejections) -> list[tuple[Query, Content]]:
    found = []
    for query in queries:
        try:
            found.append((query, content_of(query)))
        except OSError as error:
            rejections.add(query.where, NO_PICTURE, f"{query.image}: {error.strerror or error}")
    return found
