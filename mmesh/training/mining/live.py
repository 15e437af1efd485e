"""Hard negatives of a collection of the live mesh: batches of queries in flight, answers in order.

Every modality is searched exhaustively by score: when an instruction makes the mesh look at one
modality only, the others are asked for as well, and the lists become one by raw scores.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import islice

from mmesh.aio import AsyncClient
from mmesh.candidates import Candidate
from mmesh.collections import Collection
from mmesh.content import Attributes, Content, Modality
from mmesh.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    FailedPrecondition,
    MessageTooLarge,
    MmeshError,
)
from mmesh.evaluation.datasets.dataset import Broken
from mmesh.evaluation.live.contents import content_of
from mmesh.evaluation.live.patience import PatientSearches
from mmesh.evaluation.options import Effort
from mmesh.search import Hit, MergePolicy, Rerank, Search, SearchResult
from mmesh.training.mining.drawing import (
    Drop,
    Eligible,
    Negative,
    Positives,
    Ranked,
    Rules,
    draw,
    eligible,
    in_order,
)
from mmesh.training.mining.questions import Question
from mmesh.training.mining.states import State
from mmesh.values.ids import is_id

BROKEN, NO_PICTURE, NO_POSITIVE = "broken row", "picture missing", "positive not in the collection"
FETCH = 64
"""Candidates that one call fetches, without the bytes of their pictures."""
WINDOW = 2
"""Batches begun for each call in flight: one is worked on while another is asked for."""
REFUSED, NO_TARGET = "refused by the mesh", "positives of several modalities and no target"


@dataclass(frozen=True, slots=True)
class Mined:
    """The negatives of a query."""

    question: Question
    wanted: Modality
    found: Eligible
    negatives: tuple[Negative, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A query without a place in the file."""

    where: str
    reason: str
    detail: str


class _Refusal(Exception):
    """Carries why a query cannot be mined for."""


@dataclass(frozen=True, slots=True)
class Known:
    """What must be known of a positive."""

    modality: Modality
    group: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question with its content read."""

    question: Question
    content: Content


class Miner:
    """Mines a collection; `state` tells in which states it was searched."""

    def __init__(
        self, client: AsyncClient, collection: Collection, rules: Rules, seed: int, effort: Effort
    ) -> None:
        self._collection, self._rules, self._seed = collection, rules, seed
        self._client, self._effort = client, effort
        self._searches = PatientSearches(client, effort)
        self._held = tuple(m for m in Modality if collection.candidates.get(m))
        self.state = State(collection)
        self.late = 0
        """Queries that the mesh did not answer, or its reranker not judge, in time."""
        self.judged_in_part = 0
        """Queries of which some candidates were not judged, for want of time or for good."""
        self._free = asyncio.Semaphore(effort.in_flight)
        """A permit for each call."""

    async def mine(self, questions: Iterator[Question | Broken]) -> AsyncIterator[Mined | Refused]:
        """Yield an answer for each question, in order.

        Raises:
            FailedPrecondition: the collection is empty, or another one or another state of a
                snapshot has taken its place.
            CollectionNotFound: it was deleted.
            MmeshError: the mesh is away for longer than patience lasts.
        """
        if not self._held:
            raise FailedPrecondition(f"{self._collection.name!r} is empty: nothing can be mined")
        self._searches.begin()
        async with aclosing(self._answers(questions)) as answers:
            async for one in answers:
                yield one
        await self._check_is_there()

    async def _check_is_there(self) -> None:
        """Raise unless the collection still is the one that was searched."""
        now = await self._client.get_collection(
            self._collection.name, timeout=self._effort.timeout_s
        )
        self.state.saw(now.token)

    async def _answers(
        self, questions: Iterator[Question | Broken]
    ) -> AsyncGenerator[Mined | Refused, None]:
        flying: deque[asyncio.Task[list[Mined | Refused]]] = deque()
        try:
            while True:
                while len(flying) < WINDOW * self._effort.in_flight:
                    batch = list(islice(questions, self._effort.batch))
                    if not batch:
                        break
                    flying.append(asyncio.create_task(self._batch(batch)))
                if not flying:
                    return
                for one in await flying.popleft():
                    yield one
        finally:
            for task in flying:
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)

    async def _batch(self, batch: Sequence[Question | Broken]) -> list[Mined | Refused]:
        read = await asyncio.to_thread(lambda: [_read(one) for one in batch])
        asked = [one for one in read if isinstance(one, _Asked)]
        searches = [self._search(one) for one in asked]
        rankings = await self._everywhere(searches)
        known = await self._positives(asked, rankings)
        answers = [
            self._answer(one, ranking, positives)
            for one, ranking, positives in zip(asked, rankings, known, strict=True)
        ]
        if self._rules.judge is not None:
            answers = await self._judged(asked, answers)
        settled = iter(answers)
        return [next(settled) if isinstance(one, _Asked) else one for one in read]

    def _search(self, asked: _Asked) -> Search:
        return Search(
            self._collection.name,
            asked.content,
            asked.question.query.instruction,
            limit=self._rules.top,
            merge=MergePolicy.SCORE,
            rerank=Rerank(0),
            token=self._collection.token,
            require_all_shards=True,
        )

    async def _everywhere(self, searches: Sequence[Search]) -> list[list[Hit] | MmeshError]:
        """Return the hits of all modalities for each search, whatever its instruction names."""
        found: list[list[Hit] | MmeshError] = []
        more: list[tuple[int, Search]] = []
        for number, outcome in enumerate(await self._outcomes(searches)):
            if isinstance(outcome, MmeshError):
                found.append(outcome)
                continue
            found.append(list(outcome.hits))
            searched = outcome.receipt.searched
            more += [
                (number, replace(searches[number], target=modality))
                for modality in self._held
                if modality not in searched
            ]
        if more:
            outcomes = await self._outcomes([search for _, search in more])
            for (number, _), outcome in zip(more, outcomes, strict=True):
                so_far = found[number]
                if isinstance(outcome, MmeshError):
                    found[number] = outcome
                elif not isinstance(so_far, MmeshError):
                    so_far.extend(outcome.hits)
        return found

    async def _outcomes(self, searches: Sequence[Search]) -> list[SearchResult | MmeshError]:
        """Return an outcome for each search, of what is to be mined.

        Raises:
            CollectionNotFound: it was deleted: no search will find anything any more.
            FailedPrecondition: some outcome is of something else.
        """
        async with self._free:
            outcomes = await self._searches.outcomes(searches)
        for outcome in outcomes:
            if isinstance(outcome, CollectionNotFound):
                raise outcome
            if isinstance(outcome, SearchResult):
                self.state.saw(outcome.token)
        return outcomes

    async def _positives(
        self, asked: Sequence[_Asked], rankings: Sequence[list[Hit] | MmeshError]
    ) -> list[list[Known]]:
        """Return what is known of each query's positives; those not among the first are fetched."""
        known: list[list[Known]] = []
        fetch: dict[str, None] = {}
        for one, ranking in zip(asked, rankings, strict=True):
            ids = one.question.positives
            hits = [] if isinstance(ranking, MmeshError) else ranking
            mine = [self._known(hit.modality, hit.attributes) for hit in hits if hit.id in ids]
            needs_all = bool(self._rules.same_group) or one.question.wanted is None
            known.append(mine)
            if not mine or (needs_all and len(mine) < len(ids)):
                fetch.update(dict.fromkeys(ids))
        fetched = await self._fetch(list(fetch))
        for mine, one in zip(known, asked, strict=True):
            mine += [fetched[name] for name in one.question.positives if name in fetched]
        return known

    async def _fetch(self, ids: list[str]) -> dict[str, Known]:
        """Return those of the candidates that the collection holds."""
        found: dict[str, Known] = {}
        ids = list(filter(is_id, ids))  # a call with what no candidate can have fails as a whole
        for start in range(0, len(ids), FETCH):
            async with self._free:
                candidates = await self._get(ids[start : start + FETCH])
            for candidate in candidates:
                found[candidate.id] = self._known(candidate.content.modality, candidate.attributes)
        return found

    async def _get(self, ids: list[str]) -> list[Candidate]:
        timeout = self._effort.timeout_s
        try:
            return await self._client.batch_get_candidates(
                self._collection.name, ids, include_images=False, timeout=timeout
            )
        except MessageTooLarge:
            if len(ids) == 1:
                raise
            half = len(ids) // 2
            return await self._get(ids[:half]) + await self._get(ids[half:])

    def _known(self, modality: Modality, attributes: Attributes) -> Known:
        return Known(modality, self._group(attributes))

    def _group(self, attributes: Attributes) -> str:
        value = attributes.get(self._rules.same_group) if self._rules.same_group else None
        return "" if value is None else str(value)

    def _answer(
        self, asked: _Asked, ranking: list[Hit] | MmeshError, known: list[Known]
    ) -> Mined | Refused:
        question = asked.question
        if isinstance(ranking, MmeshError):
            self.late += isinstance(ranking, DeadlineExceeded)
            detail = f"{ranking.reason}: {ranking.message}"
            return Refused(question.query.where, REFUSED, detail)
        try:
            wanted = _wanted(question, known)
        except _Refusal as refusal:
            return Refused(question.query.where, str(refusal), f"query {question.query.id!r}")
        ranked = [
            Ranked(hit.id, hit.modality, hit.retrieval_score, self._group(hit.attributes))
            for hit in ranking
        ]
        groups = frozenset(one.group for one in known) - {""}
        positives = Positives(frozenset(question.positives), groups)
        top = in_order(ranked, self._rules.top)
        return self._mined(question, wanted, eligible(top, positives, wanted, self._rules))

    def _mined(self, question: Question, wanted: Modality, found: Eligible) -> Mined:
        negatives = draw(found, self._rules.count, self._seed, question.query.id)
        return Mined(question, wanted, found, negatives)

    async def _judged(
        self, asked: Sequence[_Asked], answers: Sequence[Mined | Refused]
    ) -> list[Mined | Refused]:
        """Return the answers without what the reranker calls true."""
        places = [
            (number, one)
            for number, one in enumerate(answers)
            if isinstance(one, Mined) and one.found.low_rank
        ]
        # The last of C2 has at most this rank among its own modality, too.
        searches = [
            replace(
                self._search(asked[number]),
                target=one.wanted,
                rerank=Rerank(max(negative.rank for negative in one.found.low_rank)),
            )
            for number, one in places
        ]
        judged = list(answers)
        outcomes = await self._outcomes(searches) if searches else []
        for (number, one), outcome in zip(places, outcomes, strict=True):
            self._note_judging(outcome)
            left = one.found.without(self._untrustworthy(one.found, outcome))
            judged[number] = self._mined(one.question, one.wanted, left)
        return judged

    def _note_judging(self, outcome: SearchResult | MmeshError) -> None:
        if isinstance(outcome, MmeshError):
            self.late += isinstance(outcome, DeadlineExceeded)
            return
        reasons = {degradation.reason for degradation in outcome.degradations}
        self.late += "RERANK_UNAVAILABLE" in reasons
        self.judged_in_part += "RERANK_PARTIAL" in reasons

    def _untrustworthy(
        self, found: Eligible, outcome: SearchResult | MmeshError
    ) -> dict[str, Drop]:
        limit = self._rules.judge
        assert limit is not None
        hits = () if isinstance(outcome, MmeshError) else outcome.hits
        scores = {hit.id: hit.rerank_score for hit in hits if hit.rerank_score is not None}
        reasons = {}
        for one in found.low_rank:
            if one.id not in scores:
                reasons[one.id] = Drop.NOT_JUDGED
            elif scores[one.id] >= limit:
                reasons[one.id] = Drop.JUDGED_TRUE
        return reasons


def _wanted(question: Question, known: Sequence[Known]) -> Modality:
    """Return the modality that a question asks for."""
    if not known:
        raise _Refusal(NO_POSITIVE)
    if question.wanted is not None:
        return question.wanted
    kinds = {one.modality for one in known}
    if len(kinds) > 1:
        raise _Refusal(NO_TARGET)
    return kinds.pop()


def _read(one: Question | Broken) -> _Asked | Refused:
    if isinstance(one, Broken):
        return Refused(one.where, BROKEN, one.reason)
    try:
        return _Asked(one, content_of(one.query))
    except OSError as error:
        detail = f"{one.query.image}: {error.strerror or error}"
        return Refused(one.query.where, NO_PICTURE, detail)
