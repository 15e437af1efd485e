"""Searches from end to end: plan, encode, search all shards, merge, rerank, answer.

A single search is a batch of one. Stages that gain from company (encode, search) run for the whole
batch, the others for each search on its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version

import numpy as np

from mmesh.errors import (
    CollectionNotFound,
    DataLoss,
    DimMismatch,
    InvalidField,
    InvalidRequest,
    MmeshError,
    ModelMismatch,
    Overloaded,
    ShardUnavailable,
)
from mmesh.search import Consistency, Coverage, Hit, Receipt, RerankOutcome, Search, SearchResult
from mmesh.serving import logs
from mmesh.serving.deadline import Deadline
from mmesh.vector_search import VectorSearch
from services.gateway import metrics
from services.gateway.catalog import Catalog
from services.gateway.config import GatewaySettings
from services.gateway.interfaces import PASSING, Encoder, Index, Reranker
from services.gateway.search.calibrator import Calibrator
from services.gateway.search.fanout import Gathered, search_shards
from services.gateway.search.merge import merge, needs_calibration
from services.gateway.search.plan import make_plan
from services.gateway.search.queries import QueryEmbedder
from services.gateway.search.ranking import Ranked
from services.gateway.search.rerank import places_to_judge, reorder
from services.gateway.search.run import Run

VERSION = version("mmesh")
JUDGED_AT_A_TIME = 4
"""Rerank calls of this gateway at a time; a batch must not fill the reranker's queue by itself."""
SHARDS_SHARE, CALIBRATE_SHARE = 0.8, 0.3
JUDGE_SHARE, JUDGE_SHARE_UNASKED = 0.9, 0.5
CONTENT_SHARE = 0.8
"""Shares of the time that is left which a stage may use."""
_MOVED = (CollectionNotFound, ModelMismatch, DimMismatch)
"""Errors that may mean that a name stands for another collection than a moment ago."""
_CONTENT_TROUBLE = (*PASSING, DataLoss)
"""Errors of the log and its blobs that cost an answer its contents, not its hits."""


class Pipeline:
    """Answers searches with an encoder, an index and, where there is one, a reranker."""

    def __init__(
        self,
        encoder: Encoder,
        index: Index,
        catalog: Catalog,
        reranker: Reranker | None,
        settings: GatewaySettings,
    ) -> None:
        self._index, self._catalog = index, catalog
        self._reranker, self._settings = reranker, settings
        self._embedder = QueryEmbedder(encoder, settings.embedding_cache)
        self._calibrator = Calibrator(encoder, index)
        self._judging = asyncio.Semaphore(JUDGED_AT_A_TIME)
        self._running = 0

    async def close(self) -> None:
        """End work in the background."""
        await self._calibrator.close()

    async def search(self, search: Search, deadline: Deadline) -> SearchResult:
        """Answer one search, or raise what is wrong with it."""
        (outcome,) = await self.search_batch([search], deadline)
        if isinstance(outcome, MmeshError):
            raise outcome
        return outcome

    async def search_batch(
        self, searches: Sequence[Search], deadline: Deadline
    ) -> list[SearchResult | MmeshError]:
        """Return an answer or an error for each search, in order."""
        if self._running + len(searches) > max(self._settings.max_running, len(searches)):
            raise Overloaded(f"{self._running} searches run already")
        self._running += len(searches)
        metrics.running_searches.set(self._running)
        try:
            runs = [self._new_run(search, deadline) for search in searches]
            await self._run_all(runs, deadline)
        finally:
            self._running -= len(searches)
            metrics.running_searches.set(self._running)
        return [run.result or run.error or InvalidRequest("the search was not run") for run in runs]

    def _new_run(self, search: Search, deadline: Deadline) -> Run:
        wanted = search.rerank.candidates if search.rerank else self._settings.rerank_candidates
        depth = wanted if self._reranker or search.rerank else 0
        run = Run(search, deadline, depth, search.merge or self._settings.merge)
        run.plan = make_plan(search)
        return run

    async def _run_all(self, runs: Sequence[Run], deadline: Deadline) -> None:
        await self._find(runs, deadline)
        moved = [run for run in runs if run.collection and isinstance(run.error, _MOVED)]
        if moved:
            self._catalog.forget()
            for run in moved:
                run.error, run.degradations = None, []
            await self._find(moved, deadline)
        await asyncio.gather(*(self._finish(run) for run in runs if run.error is None))

    async def _find(self, runs: Sequence[Run], deadline: Deadline) -> None:
        """Fill in the hits, or the error, of every run."""
        await asyncio.gather(*(self._look_up(run) for run in runs))
        await self._encode([run for run in runs if run.error is None], deadline)
        encoded = [run for run in runs if run.error is None]
        await asyncio.gather(*(self._search_alike(alike) for alike in _alike(encoded)))

    async def _look_up(self, run: Run) -> None:
        """Find out which collection is meant, and of which model; no shard sees an alias."""
        is_strong = run.search.consistency is Consistency.STRONG
        source = self._index.get_collection if is_strong else self._catalog.get
        try:
            collection = await source(run.search.collection, run.deadline)
        except MmeshError as error:
            run.error = error
            return
        run.collection, run.model = collection.name, collection.model_fingerprint
        run.watch.lap("plan")

    async def _encode(self, runs: Sequence[Run], deadline: Deadline) -> None:
        service_s = await self._embedder.embed(runs, deadline)
        for run in runs:
            run.watch.lap("encode", service_s)
            if run.embedding and run.embedding.truncated:
                run.degrade("TEXT_TRUNCATED", "the query's text is longer than the model reads")

    # -- search

    async def _search_alike(self, runs: Sequence[Run]) -> None:
        """Search the shards once for runs that differ in their query only."""
        try:
            found = await self._search_shards(runs)
        except MmeshError as error:
            for run in runs:
                run.error = error
            return
        for run, lists in zip(runs, found.lists, strict=True):
            run.lists, run.token = lists, found.token
            run.coverage = Coverage(found.answered, found.total)
            run.watch.lap("search", found.service_s)
            self._note_missing(run, found)

    async def _search_shards(self, runs: Sequence[Run]) -> Gathered:
        """Search as deep as judging wants, or as the collection allows."""
        order, asked = _order_for(runs), max(run.search.limit for run in runs)
        deadline = runs[0].deadline.share(SHARDS_SHARE)
        try:
            return await search_shards(self._index, order, deadline)
        except InvalidField as error:
            if error.field != "limit" or order.limit == asked:
                raise
            return await search_shards(self._index, replace(order, limit=asked), deadline)

    def _note_missing(self, run: Run, found: Gathered) -> None:
        for shard, error in found.missing.items():
            run.degrade("SHARD_UNAVAILABLE", f"shard {shard} is left out: {error.message}")
        if found.missing and run.search.require_all_shards:
            missing = ", ".join(map(str, found.missing))
            run.error = ShardUnavailable(f"shards {missing} did not answer", {"shards": missing})

    # -- the rest, for each search on its own

    async def _finish(self, run: Run) -> None:
        try:
            await self._merge(run)
            await self._rerank(run)
            await self._fetch_shown(run)
            run.deadline.check()
            self._answer(run)
        except MmeshError as error:
            run.error = error

    async def _merge(self, run: Run) -> None:
        filled = [modality for modality, hits in run.lists.items() if hits]
        if needs_calibration(run.merge, filled):
            deadline = run.deadline.share(CALIBRATE_SHARE)
            modality = run.search.query.modality
            run.calibration = await self._calibrator.get(
                run.collection, run.model, run.token, modality, deadline
            )
            if run.calibration is None:
                run.degrade("CALIBRATION_MISSING", "the lists were merged by raw scores")
            run.watch.lap("calibrate")
        run.ranked = merge(run.lists, run.merge, run.calibration, run.list_limit)
        run.watch.lap("merge")

    async def _rerank(self, run: Run) -> None:
        if not run.ranked or not run.depth:
            return
        if self._reranker is None:
            run.degrade("RERANK_UNAVAILABLE", "this mesh has no reranker")
            return
        try:
            budget = _budget(run)
            async with asyncio.timeout(budget.remaining()):
                await self._judge(run, self._reranker, budget)
        except (MmeshError, TimeoutError) as error:
            reason = error.message if isinstance(error, MmeshError) else "its time ran out"
            run.degrade("RERANK_UNAVAILABLE", f"the hits are in first-stage order: {reason}")
        run.watch.lap("rerank", run.verdict.service_s if run.verdict else 0.0)

    async def _judge(self, run: Run, reranker: Reranker, budget: Deadline) -> None:
        judge = await reranker.judge(budget)
        weights = judge.weights.get(run.search.query.modality, {})
        await self._fetch(run, places_to_judge(run.ranked, run.depth, weights), budget)
        places = places_to_judge(run.ranked, run.depth, weights)  # again: some may be gone
        if not places:
            return
        contents = [run.contents[run.ranked[place].hit.id] for place in places]
        search = run.search
        image_tokens = search.rerank.max_image_tokens if search.rerank else 0
        async with self._judging:
            run.verdict = await reranker.rerank(
                search.query, search.instruction, contents, budget, image_tokens
            )
        pairs = zip(places, run.verdict.scores, strict=True)
        scores = {place: score for place, score in pairs if score is not None}
        run.ranked = reorder(run.ranked, scores, weights, judge)
        whole = len(scores) == len(places)
        run.outcome = RerankOutcome.FULL if whole else RerankOutcome.PARTIAL
        if not whole:
            run.degrade("RERANK_PARTIAL", f"{len(scores)} of {len(places)} hits were judged")

    async def _fetch_shown(self, run: Run) -> None:
        """Get the content that is sent along; without the log, hits go without."""
        if not (run.search.include_content and run.ranked):
            return
        shown = range(min(run.search.limit, len(run.ranked)))
        with suppress(*_CONTENT_TROUBLE):  # it is noted
            await self._fetch(run, shown, run.deadline.share(CONTENT_SHARE))

    async def _fetch(self, run: Run, places: Sequence[int], deadline: Deadline) -> None:
        """Get the content of hits; those that were deleted since they were found are dropped.

        Raises:
            MmeshError: it cannot be had; the run is degraded if that is not about the request.
        """
        ids = [run.ranked[p].hit.id for p in places if run.ranked[p].hit.id not in run.contents]
        if not ids:
            return
        try:
            found = await self._index.get(run.collection, ids, deadline)
        except _CONTENT_TROUBLE as error:
            run.degrade("CONTENT_UNAVAILABLE", f"content cannot be read: {error.message}")
            raise
        finally:
            run.watch.lap("fetch")
        run.contents |= {candidate.id: candidate.content for candidate in found}
        gone = set(ids) - run.contents.keys()
        run.ranked = [entry for entry in run.ranked if entry.hit.id not in gone]

    def _answer(self, run: Run) -> None:
        hits = tuple(
            self._hit(run, rank, entry)
            for rank, entry in enumerate(run.ranked[: run.search.limit], start=1)
        )
        run.watch.lap("answer")
        receipt = _receipt(run)
        run.result = SearchResult(
            hits, run.coverage, tuple(run.degradations), receipt, str(run.token)
        )
        _measure(run.result)

    def _hit(self, run: Run, rank: int, entry: Ranked) -> Hit:
        hit = entry.hit
        content = run.contents.get(hit.id) if run.search.include_content else None
        return Hit(
            hit.id, rank, entry.score, hit.retrieval_score, entry.rerank_score,
            hit.modality, hit.attributes, content,
        )  # fmt: skip


def _budget(run: Run) -> Deadline:
    """Return how long judging may take: what was asked for, else half of what is left."""
    asked = run.search.rerank.max_seconds if run.search.rerank else 0.0
    if not asked:
        return run.deadline.share(JUDGE_SHARE_UNASKED)
    return Deadline.after(min(asked, run.deadline.share(JUDGE_SHARE).remaining()))


def _alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs whose searches differ in the query only."""

    def key(run: Run) -> tuple[Hashable, ...]:
        search = run.search
        fixed = (run.collection, run.plan.modalities, run.list_limit, search.filter)
        return (*fixed, search.consistency, search.token, search.require_all_shards)

    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())


def _order_for(runs: Sequence[Run]) -> VectorSearch:
    search = runs[0].search
    embeddings = [run.embedding for run in runs if run.embedding is not None]
    default = Consistency.SESSION if search.token else Consistency.EVENTUAL
    return VectorSearch(
        runs[0].collection,
        np.stack([embedding.vector for embedding in embeddings]),
        runs[0].model,
        runs[0].plan.modalities,
        runs[0].list_limit,
        search.filter,
        search.consistency or default,
        search.token,
    )


def _receipt(run: Run) -> Receipt:
    embedding, verdict = run.embedding, run.verdict
    assert embedding is not None
    return Receipt(
        request_id=logs.request_id.get(),
        query_modality=run.search.query.modality,
        searched=run.plan.modalities,
        target_source=run.plan.source,
        merge=run.merge,
        stages=tuple(run.watch.stages),
        total_seconds=run.watch.total_s,
        encoder_batch_size=embedding.batch_size,
        embedding_cached=embedding.cached,
        encoder_fingerprint=embedding.fingerprint,
        reranker_fingerprint=verdict.fingerprint if verdict else "",
        reranker_template=verdict.template if verdict else "",
        rerank_outcome=run.outcome,
        calibration=run.calibration.version if run.calibration else "",
        gateway_version=VERSION,
    )


def _measure(result: SearchResult) -> None:
    for stage in result.receipt.stages:
        metrics.stage_seconds.labels(stage.name).observe(stage.seconds)
    for hit in result.hits:
        metrics.hits_total.labels(hit.modality.value).inc()
    for degradation in result.degradations:
        metrics.degradations_total.labels(degradation.reason).inc()
