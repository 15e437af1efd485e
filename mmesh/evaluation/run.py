"""An evaluation from pool to figures: fill, search, score; one that was killed goes on."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmesh.aio import AsyncClient
from mmesh.collections import Collection, CollectionSettings
from mmesh.errors import CollectionExists, CollectionNotFound
from mmesh.evaluation.bootstrap import Estimate, estimate_macro_mean
from mmesh.evaluation.cost import TooMuch, check_room, estimate, obstacles
from mmesh.evaluation.datasets.dataset import Broken, Dataset, DatasetError, Query, Task
from mmesh.evaluation.folder import MANIFEST, OtherEvaluation, check_manifest
from mmesh.evaluation.live.answers import Answer, AnswerLog, read_answers
from mmesh.evaluation.live.filling import Filled, FillJournal, fill, pool_digest
from mmesh.evaluation.live.searching import Plan, Searcher
from mmesh.evaluation.options import Effort, Options, Way
from mmesh.evaluation.rejections import BROKEN, Rejections
from mmesh.evaluation.results import RESULTS, SCORES, Results, write_results
from mmesh.evaluation.runfiles import write_runs, write_submission
from mmesh.evaluation.scoring import Poor, ScoredRun, read_judgements, score_task
from mmesh.evaluation.survey import Survey, survey
from mmesh.evaluation.watching import Silent, Watcher

ANSWERS, RUNS = "answers", "runs"
EXACT = "Flat"
"""The index that is searched exhaustively."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an evaluation happens."""

    folder: Path
    """Of answers, run files and the report; an evaluation that is there goes on."""
    address: str = ""
    """Of the gateway, to tell whether its memory is this machine's."""
    collection: str = ""
    """Empty: named after data set and pool as it is now. One that is named here is not emptied."""
    model: str = ""
    """Of a new collection; empty: the mesh's first."""
    exact: bool = False
    """Whether a new collection is searched exhaustively, as publications do."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be spent."""

    max_hours: float = 24.0
    regardless: bool = False
    """Go on even if it cannot fit."""
    ingest: bool = True
    """False: the pool is in the collection already."""


@dataclass
class Evaluation:
    """One evaluation of one data set on a live mesh."""

    client: AsyncClient
    dataset: Dataset
    place: Place
    options: Options = field(default_factory=Options)
    effort: Effort = field(default_factory=Effort)
    limits: Limits = field(default_factory=Limits)
    watcher: Watcher = field(default_factory=Silent)
    poor: list[Poor] = field(default_factory=list, init=False)
    """The poorest queries of each task, the first way, once it has run."""
    _judge: str = field(default="", init=False)

    async def run(self) -> Results:
        """Fill, search and score; return the figures.

        Raises:
            DatasetError: the data set cannot be read, the folder holds another evaluation, or the
                collection is there and not as it is asked for.
            TooMuch: it cannot fit, and nobody said to go on regardless.
            MmeshError: the mesh was away for too long; the same call goes on from there.
        """
        self.watcher.say(f"reading {self.dataset.name}")
        found = await asyncio.to_thread(survey, self.dataset)
        if not found.total:
            raise DatasetError(f"{self.dataset.pool_files[0]} holds no candidate")
        collection = await self._open_collection()
        self.place.folder.mkdir(parents=True, exist_ok=True)
        self._check_room(found)
        filled = await self._fill(collection, found)
        collection = await self.client.get_collection(collection.name)
        self._check_manifest(collection, found)
        rejections = Rejections()
        rejections.extend([filled.rejections])
        is_wider = self._is_wider(collection, filled)
        scored = [
            await self._task(task, way, collection, is_wider, found, rejections)
            for task in self.dataset.tasks
            for way in self.options.ways_of(self.dataset)
        ]
        held = self._held(collection, found, filled) if is_wider else _counts(collection)
        return self._results(collection, held, rejections, [one for one in scored if one])

    async def restart(self) -> None:
        """Forget what was done before: the answers, and how far the pool is in.

        Raises:
            DatasetError: the collection is not as it is asked for; nothing is forgotten.
        """
        try:
            collection = await self.client.get_collection(self.collection_name)
        except CollectionNotFound:
            self._forget_answers()
            return
        await self._check_collection(collection)
        self._forget_answers()
        FillJournal(collection, self.dataset).forget()

    def _forget_answers(self) -> None:
        for name in (ANSWERS, RUNS, SCORES):
            shutil.rmtree(self.place.folder / name, ignore_errors=True)
        for name in (MANIFEST, RESULTS):
            (self.place.folder / name).unlink(missing_ok=True)

    @property
    def collection_name(self) -> str:
        """Name of the collection."""
        name = f"eval-{self.dataset.name}"[:54].rstrip("-")
        return self.place.collection or f"{name}-{pool_digest(self.dataset)}"

    async def _open_collection(self) -> Collection:
        try:
            collection = await self.client.get_collection(self.collection_name)
            await self._check_collection(collection)
            return collection
        except CollectionNotFound:
            settings = CollectionSettings(index_factory=EXACT) if self.place.exact else None
            model = self.place.model
            return await self.client.create_collection(self.collection_name, settings, model=model)

    async def _check_collection(self, collection: Collection) -> None:
        """Make sure that a collection that is there is searched as a new one would be.

        Raises:
            DatasetError: it is of another model, or approximate where exhaustive search is due.
        """
        name, factory = collection.name, collection.settings.index_factory
        instead = "name another with --collection, or delete it"
        if self.place.exact and factory != EXACT:
            kind = f"has the index {factory}" if factory else "is indexed by its size"
            raise DatasetError(f"--exact: the collection {name} is there and {kind}; {instead}")
        if not self.place.model:
            return
        try:  # returns the one that is there when it is of this model
            await self.client.create_collection(name, model=self.place.model)
        except CollectionExists:
            raise DatasetError(
                f"--model {self.place.model}: the collection {name} is there and of the model "
                f"{collection.model_fingerprint}; {instead}"
            ) from None

    def _searches(self, found: Survey) -> int:
        return sum(found.queries.values()) * len(self.options.ways_of(self.dataset))

    def _check_room(self, found: Survey) -> None:
        most = max(self.options.limit_of(task) for task in self.dataset.tasks)
        self._refuse(check_room(self.place.folder, self._searches(found), most))

    async def _fill(self, collection: Collection, found: Survey) -> Filled:
        journal = FillJournal(collection, self.dataset)
        searches, rerank = self._searches(found), self.options.rerank
        cost = estimate(found, collection, journal.read().rows, searches, rerank)
        if not self.limits.ingest:
            self.watcher.say(f"{collection.name} is taken as it is: {cost.searches:,} searches")
            return Filled()
        self.watcher.say(f"{cost}")
        self._refuse(obstacles(cost, collection, self.place.address, self.limits.max_hours))

        def judge(done: int, rate: float) -> None:
            cost = estimate(found, collection, done, searches, rerank, rows_per_s=rate)
            if cost.rows:
                self.watcher.say(f"{cost}")
            self._refuse(obstacles(cost, collection, self.place.address, self.limits.max_hours))

        return await fill(
            self.client, collection, self.dataset, found, journal, self.watcher, judge
        )

    def _refuse(self, reasons: list[str]) -> None:
        if reasons and not self.limits.regardless:
            raise TooMuch("; ".join(reasons))
        for reason in reasons:
            self.watcher.say(f"going on although {reason}")

    def _check_manifest(self, collection: Collection, found: Survey) -> None:
        """Remember what the answers in the folder are answers to; refuse to mix them with others.

        Raises:
            OtherEvaluation: they are of another one.
        """
        mine = {
            "dataset": self.dataset.name,
            "notes": list(self.dataset.notes),
            "tasks": [task.name for task in self.dataset.tasks],
            "queries": found.queries,
            "query_digest": found.query_digest,
            "options": self.options.as_json(),
            "collection": collection.name,
            "created": collection.create_time.isoformat(),
            "token": collection.token,
            "model": collection.model_fingerprint,
        }
        check_manifest(self.place.folder, mine)

    async def _task(
        self,
        task: Task,
        way: Way,
        collection: Collection,
        is_wider: bool,
        found: Survey,
        rejections: Rejections,
    ) -> ScoredRun | None:
        name = f"{task.name}.{way.value}"
        path = self.place.folder / ANSWERS / f"{name}.jsonl"
        first_way = way is self.options.ways_of(self.dataset)[0]
        notes = rejections if first_way else Rejections()  # the same rows each way: counted once
        within = _within(task, way, is_wider, found)
        plan = Plan(collection.name, collection.token, task, self.options, within)
        done = set(read_answers(path))
        self.watcher.stage(name, found.queries[task.name], len(done))
        with AnswerLog(path) as log:
            searcher = Searcher(self.client, self.effort, self.watcher)
            left = (q for q in self._queries(task, notes) if q.id not in done)
            notes.extend([await searcher.run(plan, left, log, len(done))])
        answers = read_answers(path)
        self._note_judges(answer.judge for answer in answers.values())
        scored = await asyncio.to_thread(self._score, task, way, answers, found, notes)
        if scored and first_way:
            self.poor += scored.poor
        return scored

    def _note_judges(self, judges: Iterable[str]) -> None:
        """Take note of who judged; figures of two judges are nobody's.

        Raises:
            OtherEvaluation: another judge took over in the middle.
        """
        names = sorted({*judges, self._judge} - {""})
        if len(names) > 1:
            raise OtherEvaluation(
                f"{self.place.folder} holds answers that {' and '.join(names)} judged; "
                "--restart asks all again"
            )
        self._judge = (names or [""])[0]

    def _is_wider(self, collection: Collection, filled: Filled) -> bool:
        """Tell whether the collection holds candidates that are not of the pool."""
        return self.limits.ingest and sum(collection.candidates.values()) > filled.stored

    def _held(self, collection: Collection, found: Survey, filled: Filled) -> dict[str, int]:
        """Return what of the pool a wider collection holds, by modality."""
        if sum(filled.candidates.values()) == filled.stored:
            return dict(filled.candidates)
        return {m.value: count for m, count in found.candidates.items()}

    def _score(
        self, task: Task, way: Way, answers: dict[str, Answer], found: Survey, notes: Rejections
    ) -> ScoredRun | None:
        folder, name = self.place.folder, f"{task.name}.{way.value}"
        quiet = Rejections()
        write_runs(task, name, self._queries(task, quiet), answers, folder / RUNS)
        if not task.judged:
            write_submission(task, name, answers, folder / RUNS)
            return None
        judged = read_judgements(self.dataset, task, found, notes)
        return score_task(task, way, self._queries(task, quiet), answers, judged, folder)

    def _queries(self, task: Task, notes: Rejections) -> Iterator[Query]:
        for one in self.dataset.queries(task):
            if isinstance(one, Broken):
                notes.add(one.where, BROKEN, one.reason)
            else:
                yield one

    def _results(
        self,
        collection: Collection,
        held: dict[str, int],
        rejections: Rejections,
        scored: list[ScoredRun],
    ) -> Results:
        results = Results(
            dataset=self.dataset.name,
            notes=tuple(self.dataset.notes),
            options=self.options.as_json(),
            collection=collection.name,
            encoder=collection.model_fingerprint,
            judge=self._judge,
            candidates=held,
            rejections=rejections.as_json(),
            tasks=tuple(one.result for one in scored),
            averages=_averages(scored),
        )
        write_results(results, self.place.folder)
        return results


def _within(task: Task, way: Way, is_wider: bool, found: Survey) -> tuple[str, ...]:
    """Return the pools to search among; nothing when that is the whole collection."""
    if way is Way.UNION:
        return tuple(sorted(found.pools)) if is_wider else ()
    return (task.pool,) if is_wider or len(found.pools) > 1 else ()


def _counts(collection: Collection) -> dict[str, int]:
    return {modality.value: count for modality, count in collection.candidates.items()}


def _averages(scored: list[ScoredRun]) -> dict[str, Estimate]:
    ways = dict.fromkeys(one.result.way for one in scored)
    return {
        way: estimate_macro_mean([one.headlines for one in scored if one.result.way == way])
        for way in ways
    }
