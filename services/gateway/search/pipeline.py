"""Searches from end to end: plan, encode, search all shards, merge, rerank, answer.

A single search is a batch of one. Stages that gain from company (encode, search) run for the whole
batch, the others for each search on its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial

import numpy as np

from mmesh.collections import Collection
from mmesh.errors import (
    CollectionNotFound,
    DataLoss,
    DimMismatch,
    InvalidField,
    InvalidRequest,
    MmeshError,
    ModelMismatch,
    ShardUnavailable,
)
from mmesh.search import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    Consistency,
    Coverage,
    RerankOutcome,
    Search,
    SearchResult,
)
from mmesh.serving.deadline import Deadline
from mmesh.values.tokens import Token
from mmesh.vector_search import VectorSearch
from services.gateway.catalog import Catalog
from services.gateway.config import GatewaySettings
from services.gateway.fair_gate import NOBODY, Admission, Caller, FairGate
from services.gateway.interfaces import PASSING, Encoder, Index, Reranker
from services.gateway.search.answers import answer_of
from services.gateway.search.batch import HIT_BYTES, Batch
from services.gateway.search.calibrator import Calibrator
from services.gateway.search.fanout import Gathered, search_shards
from services.gateway.search.measuring import log_slow, measure
from services.gateway.search.merge import applies, merge, needs_calibration
from services.gateway.search.plan import make_plan
from services.gateway.search.queries import QueryEmbedder
from services.gateway.search.ranking import Ranked
from services.gateway.search.rerank import places_to_judge, reorder
from services.gateway.search.run import Run, guarded

JUDGED_AT_A_TIME = 4
"""Rerank calls of this gateway at a time; a batch must not fill the reranker's queue by itself."""
WORKING_S = 1.0
"""Searches that take longer wait for shards or for a token; see `FairGate`."""
MOST_HITS_AN_ORDER = 16_384
"""Hits that one shard may find for runs that are searched together: some megabytes of answer."""
WIDE_HITS, WIDE_AT_A_TIME = MOST_HITS_AN_ORDER // 2, 2
"""Hits from which on few such searches run at a time: each shard's answer takes memory here."""
SHARDS_SHARE, CALIBRATE_SHARE = 0.8, 0.3
JUDGE_SHARE, JUDGE_SHARE_UNASKED = 0.9, 0.5
CONTENT_SHARE = 0.8
"""Shares of the time that is left which a stage may use."""
FETCH_ROUNDS = 4
"""Reads of contents for one stage: hits that move up where others were deleted need theirs too."""
Choose = Callable[[Sequence[Ranked]], Sequence[int]]
"""Returns the places of a list whose contents a stage needs."""
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
        self._calibrator = Calibrator(encoder)
        self._admission = Admission(settings.max_running)
        self._searching = FairGate(settings.max_searching, WORKING_S)
        self._judging = FairGate(JUDGED_AT_A_TIME)
        self._wide = asyncio.Semaphore(WIDE_AT_A_TIME)

    async def search(
        self, search: Search, deadline: Deadline, caller: Caller = NOBODY
    ) -> SearchResult:
        """Answer one search, or raise what is wrong with it."""
        (outcome,) = await self.search_batch([search], deadline, caller)
        if isinstance(outcome, MmeshError):
            raise outcome
        return outcome

    async def search_batch(
        self, searches: Sequence[Search], deadline: Deadline, caller: Caller = NOBODY
    ) -> list[SearchResult | MmeshError]:
        """Return an answer or an error for each search, in order."""
        runs: list[Run] = []
        try:
            with self._admission.of(caller.name, len(searches)):
                runs = [self._new_run(search, deadline, caller.name) for search in searches]
                async with self._searching.turn(caller.name, caller.cost, deadline.remaining()):
                    await self._find_all(runs, deadline)
                good = [run for run in runs if run.error is None]
                hits = sum(min(run.limit, sum(map(len, run.lists.values()))) for run in good)
                room = self._settings.most_content_bytes - HIT_BYTES * hits
                batch = Batch(len(runs), room)
                await _each(partial(self._finish, batch), good)
        finally:
            log_slow(runs, self._settings.slow_search_ms / 1000)
        return [run.result or run.error or InvalidRequest("the search was not run") for run in runs]

    def _new_run(self, search: Search, deadline: Deadline, caller: str) -> Run:
        wanted = search.rerank.candidates if search.rerank else self._settings.rerank_candidates
        depth = wanted if self._reranker or search.rerank else 0
        return Run(search, deadline, depth, search.merge or self._settings.merge, caller)

    async def _find_all(self, runs: Sequence[Run], deadline: Deadline) -> None:
        await self._find(runs, deadline)
        moved = [run for run in runs if run.collection and isinstance(run.error, _MOVED)]
        if moved:
            self._catalog.forget()
            for run in moved:
                run.error, run.degradations = None, []
            await self._find(moved, deadline)

    async def _find(self, runs: Sequence[Run], deadline: Deadline) -> None:
        """Fill in the hits, or the error, of every run."""
        await _each(self._look_up, runs)
        found = [run for run in runs if run.error is None]
        await guarded(found, self._encode(found, deadline))
        encoded = [run for run in found if run.error is None]
        orders = [some for alike in _alike(encoded) for some in _parts_of(alike)]
        await asyncio.gather(*(guarded(alike, self._search_alike(alike)) for alike in orders))

    async def _look_up(self, run: Run) -> None:
        """Find out which collection is meant, and of which model; no shard sees an alias."""
        run.plan = make_plan(run.search)
        is_strong = run.search.consistency is Consistency.STRONG
        source = self._index.get_collection if is_strong else self._catalog.get
        collection = await source(run.search.collection, run.deadline)
        if _names_another(run.search, collection):
            # An alias was moved a moment ago, or the token is of the collection's mirror.
            collection = await self._index.get_collection(run.search.collection, run.deadline)
        run.collection, run.model = collection.name, collection.model_fingerprint
        run.default_limit = min(DEFAULT_LIMIT, collection.settings.limits.max_limit or MAX_LIMIT)
        run.watch.lap("plan")

    async def _encode(self, runs: Sequence[Run], deadline: Deadline) -> None:
        service_s = await self._embedder.embed(runs, deadline)
        for run in runs:
            run.watch.lap("encode", service_s)
            if run.embedding and run.embedding.truncated:
                run.degrade("TEXT_TRUNCATED", "the query's text is longer than the model reads")
            if run.embedding and "TEXT_UNKNOWN" in run.embedding.notices:
                run.degrade("TEXT_UNKNOWN", "the model knows no token of the query's text")

    # -- search

    async def _search_alike(self, runs: Sequence[Run]) -> None:
        """Search the shards once for runs that differ in their query only."""
        async with self._wide if _hits(runs) > WIDE_HITS else nullcontext():
            found = await self._search_shards(runs)
        for run, lists in zip(runs, found.lists, strict=True):
            run.lists, run.token = lists, found.token
            run.coverage = Coverage(found.answered, found.total)
            run.watch.lap("search", found.service_s)
            self._note_missing(run, found)

    async def _search_shards(self, runs: Sequence[Run]) -> Gathered:
        """Search as deep as judging wants, or as the collection allows."""
        order, asked = _order_for(runs), runs[0].limit
        deadline = runs[0].deadline.share(SHARDS_SHARE)
        try:
            return await search_shards(self._index, order, deadline)
        except InvalidField as error:
            if error.field != "limit" or order.limit == asked:
                raise
            return await search_shards(self._index, replace(order, limit=asked), deadline)

    def _note_missing(self, run: Run, found: Gathered) -> None:
        for name, meant in found.unknown.items():
            hint = f"; did you mean {meant!r}?" if meant else ""
            run.degrade("ATTRIBUTE_UNKNOWN", f"no candidate has the attribute {name[:80]!r}{hint}")
        for shard, error in found.missing.items():
            run.degrade("SHARD_UNAVAILABLE", f"shard {shard} is left out: {error.message}")
        if found.missing and run.search.require_all_shards:
            missing = ", ".join(map(str, found.missing))
            run.error = ShardUnavailable(f"shards {missing} did not answer", {"shards": missing})

    # -- the rest, for each search on its own

    async def _finish(self, batch: Batch, run: Run) -> None:
        await self._calibrate(run)
        async with batch.turn():
            run.ranked = merge(
                run.lists, run.merge, run.calibration, run.list_limit, run.search.query.modality
            )
        run.watch.lap("merge")
        await self._rerank(batch, run)
        await self._fetch_shown(batch, run)
        run.deadline.check()
        async with batch.turn():
            run.result = answer_of(run)
        measure(run.result)

    async def _calibrate(self, run: Run) -> None:
        filled = [modality for modality, hits in run.lists.items() if hits]
        if needs_calibration(run.merge, filled):
            deadline = run.deadline.share(CALIBRATE_SHARE)
            modality = run.search.query.modality
            run.calibration = await self._calibrator.get(run.model, modality, deadline)
            if not applies(run.calibration, filled):
                run.degrade("CALIBRATION_MISSING", "the lists were merged by raw scores")
            run.watch.lap("calibrate")

    async def _rerank(self, batch: Batch, run: Run) -> None:
        if not run.ranked or not run.depth:
            return
        if self._reranker is None:
            run.degrade("RERANK_UNAVAILABLE", "this mesh has no reranker")
            return
        try:
            budget = _budget(run)
            async with asyncio.timeout(budget.remaining()), batch.judging:
                await self._judge(run, self._reranker, budget)
        except (MmeshError, TimeoutError) as error:
            reason = error.message if isinstance(error, MmeshError) else "its time ran out"
            run.degrade("RERANK_UNAVAILABLE", f"the hits are in first-stage order: {reason}")
        run.watch.lap("rerank", run.verdict.service_s if run.verdict else 0.0)

    async def _judge(self, run: Run, reranker: Reranker, budget: Deadline) -> None:
        judge = await reranker.judge(budget)
        weights = judge.weights.get(run.search.query.modality, {})
        choose = partial(places_to_judge, depth=run.depth, weights=weights)
        if not choose(run.ranked):
            modality = run.search.query.modality.value
            run.degrade(
                "RERANK_SKIPPED", f"the judge has no say on these hits for queries of {modality}"
            )
            return
        room = self._settings.most_content_bytes - run.search.query.size
        left = await self._fetch(run, choose, budget, room)
        places = [place for place in choose(run.ranked) if run.has_content(place)]
        if not places:
            return
        contents = [run.contents[run.ranked[place].hit.id] for place in places]
        search = run.search
        image_tokens = search.rerank.max_image_tokens if search.rerank else 0
        async with self._judging.turn(run.caller):
            run.verdict = await reranker.rerank(
                search.query, search.instruction, contents, budget, image_tokens
            )
        pairs = zip(places, run.verdict.scores, strict=True)
        scores = {place: score for place, score in pairs if score is not None}
        run.ranked = reorder(run.ranked, scores, weights, judge)
        due = len(places) + left
        whole = len(scores) == due
        run.outcome = RerankOutcome.FULL if whole else RerankOutcome.PARTIAL
        if not whole:
            reason = f"; {left} do not fit into one message with the others" if left else ""
            run.degrade("RERANK_PARTIAL", f"{len(scores)} of {due} hits were judged{reason}")

    async def _fetch_shown(self, batch: Batch, run: Run) -> None:
        """Get the content that is sent along; without the log, hits go without."""
        if not (run.search.include_content and run.ranked):
            run.contents = {}
            return
        async with batch.fetching:
            left = 0
            with suppress(*_CONTENT_TROUBLE):  # it is noted
                deadline = run.deadline.share(CONTENT_SHARE)
                shown = partial(_shown, run.limit)
                left = await self._fetch(run, shown, deadline, batch.left_bytes)
            batch.take_contents(run, left)

    async def _fetch(self, run: Run, choose: Choose, deadline: Deadline, room: int) -> int:
        """Get the contents of chosen hits, as many as fit; return of how many there is no room.

        Those that were deleted since they were found go. Then others move up, so the choice is made
        anew after each read.

        Args:
            run: the search.
            choose: says which hits.
            deadline: for all reads.
            room: bytes that the contents of all chosen hits may have.

        Raises:
            MmeshError: it cannot be had; the run is degraded if that is not about the request.
        """
        for _ in range(FETCH_ROUNDS):
            chosen = [run.ranked[place].hit.id for place in choose(run.ranked)]
            ids = [one for one in chosen if not run.is_fetched(one)]
            if not ids:
                return 0
            held = sum(run.contents[one].size for one in chosen if one in run.contents)
            try:
                found, left = await self._index.get(run.collection, ids, deadline, room - held)
            except _CONTENT_TROUBLE as error:
                run.degrade("CONTENT_UNAVAILABLE", f"content cannot be read: {error.message}")
                raise
            finally:
                run.watch.lap("fetch")
            run.take(found)
            gone = set(ids).difference(left, (one.id for one in found))
            run.ranked = [entry for entry in run.ranked if entry.hit.id not in gone]
            if left:
                return len(left)
        if not all(run.is_fetched(run.ranked[place].hit.id) for place in choose(run.ranked)):
            run.degrade("CONTENT_UNAVAILABLE", "hits are deleted faster than content is read")
        return 0


async def _each(work: Callable[[Run], Awaitable[None]], runs: Sequence[Run]) -> None:
    """Do the work of each run; what one fails with is its own."""
    await asyncio.gather(*(guarded([run], work(run)) for run in runs))


def _consistency_of(search: Search) -> Consistency:
    default = Consistency.SESSION if search.token else Consistency.EVENTUAL
    return search.consistency or default


def _names_another(search: Search, collection: Collection) -> bool:
    """Tell whether a search wants to see a write that was made to another collection."""
    if _consistency_of(search) is not Consistency.SESSION or not search.token:
        return False
    return not Token.parse(search.token).shares_history(Token.parse(collection.token))


def _shown(limit: int, ranked: Sequence[Ranked]) -> range:
    """Return the places of the hits that are sent."""
    return range(min(limit, len(ranked)))


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
        # Filters by identity: equality would take true for 1, and look at every value.
        fixed = (run.collection, run.model, run.plan.modalities, id(search.filter))
        limits = (run.limit, run.list_limit)  # of several limits one may be refused
        return (*fixed, *limits, search.consistency, search.token, search.require_all_shards)

    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())


def _hits(runs: Sequence[Run]) -> int:
    """Return the most hits that a shard can find for runs that are alike."""
    return len(runs) * len(runs[0].plan.modalities) * runs[0].list_limit


def _parts_of(alike: Sequence[Run]) -> list[Sequence[Run]]:
    """Divide runs so that the answers of the shards to each part have a bounded size."""
    size = max(1, MOST_HITS_AN_ORDER * len(alike) // max(1, _hits(alike)))
    return [alike[start : start + size] for start in range(0, len(alike), size)]


def _order_for(runs: Sequence[Run]) -> VectorSearch:
    search = runs[0].search
    embeddings = [run.embedding for run in runs if run.embedding is not None]
    return VectorSearch(
        runs[0].collection,
        np.stack([embedding.vector for embedding in embeddings]),
        runs[0].model,
        runs[0].plan.modalities,
        runs[0].list_limit,
        search.filter,
        _consistency_of(search),
        search.token,
    )
