"""The searches of a task: many in flight, bounded, repeated while the mesh is away for a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from mmesh.aio import AsyncClient
from mmesh.content import Content, Modality
from mmesh.errors import MmeshError
from mmesh.evaluation.datasets.dataset import Query, Task
from mmesh.evaluation.live.answers import Answer, AnswerLog, Found
from mmesh.evaluation.live.contents import POOLS, content_of
from mmesh.evaluation.live.flight import in_batches
from mmesh.evaluation.live.patience import Outcome, PatientSearches
from mmesh.evaluation.options import Effort, Options, Target
from mmesh.evaluation.rejections import NO_PICTURE, Rejections
from mmesh.evaluation.watching import Watcher
from mmesh.filters import MAX_VALUES, AllOf, Filter, In
from mmesh.search import Hit, Rerank, Search, SearchResult


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
            Target.ANY: (None,),
            Target.WANTED: (wanted,),
            Target.EACH: tuple(Modality),
        }[options.target]
        return [
            Search(
                self.collection,
                content,
                query.instruction,
                target,
                options.limit_of(self.task, len(query.excluded)),
                condition,
                options.merge,
                Rerank(options.rerank),
                token=self.token,
                require_all_shards=True,
            )
            for target in targets
            for condition in self._filters(query)
        ]

    def _filters(self, query: Query) -> list[Filter | None]:
        """Return filters that together hold for what is searched, each as large as allowed."""
        pools = (In(POOLS, self.within),) if self.within else ()
        most = MAX_VALUES - len(self.within)
        some = [query.among[start : start + most] for start in range(0, len(query.among), most)]
        if some:
            return [AllOf((*pools, In("id", ids))) for ids in some]
        return [AllOf(pools) if pools else None]

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
        self._searches = PatientSearches(client, effort)
        self._effort, self._watcher = effort, watcher
        self._done = 0

    async def run(
        self, plan: Plan, queries: Iterator[Query], log: AnswerLog, done: int
    ) -> Rejections:
        """Answer queries; return which could not be asked, for want of their picture.

        Raises:
            MmeshError: nothing was answered for `patience_s` seconds, or never will be.
        """
        self._searches.begin()
        self._done = done
        rejections = Rejections()
        await in_batches(
            queries, self._effort, lambda batch: self._ask(plan, batch, log, rejections)
        )
        return rejections

    async def _ask(
        self, plan: Plan, queries: list[Query], log: AnswerLog, rejections: Rejections
    ) -> None:
        asked = await asyncio.to_thread(_with_content, queries, rejections)
        log.append(await answers_to(asked, plan, self._searches))
        self._done += len(queries)
        self._watcher.advance(self._done)


async def answers_to(
    asked: Sequence[tuple[Query, Content]], plan: Plan, calls: PatientSearches
) -> list[Answer]:
    """Return an answer for each query, which comes with its content.

    Raises:
        MmeshError: see `PatientSearches`.
    """
    searches = [plan.searches(query, content) for query, content in asked]
    outcomes = iter(await calls.outcomes([one for many in searches for one in many]))
    return [
        plan.answer(query, list(islice(outcomes, len(many))))
        for (query, _), many in zip(asked, searches, strict=True)
    ]


def _with_content(queries: list[Query], rejections: Rejections) -> list[tuple[Query, Content]]:
    found = []
    for query in queries:
        try:
            found.append((query, content_of(query)))
        except OSError as error:
            rejections.add(query.where, NO_PICTURE, f"{query.image}: {error.strerror or error}")
    return found
