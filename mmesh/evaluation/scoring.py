"""Answers against judgements: the figures of a task, the values of each query, and the worst."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmesh.evaluation.bootstrap import estimate_mean
from mmesh.evaluation.datasets.dataset import Broken, Dataset, Query, Task
from mmesh.evaluation.live.answers import Answer
from mmesh.evaluation.metrics import Ranking, metric, share_by_modality
from mmesh.evaluation.options import Way
from mmesh.evaluation.rejections import BROKEN, Rejections
from mmesh.evaluation.results import SCORES, TaskResult
from mmesh.evaluation.survey import Survey
from mmesh.evaluation.whole_files import written_whole

WORST, SHARE_AT = 20, 10
Grades = dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class Poor:
    """A query with a poor value, for people to look at."""

    task: str
    way: str
    query: Query
    value: float
    relevant: tuple[str, ...]
    found: tuple[str, ...]


@dataclass
class Judgements:
    """The judgements of a task by query, and what is wrong with them."""

    grades: Grades = field(default_factory=dict)
    unknown: int = 0
    """Rows whose candidate the pool does not hold."""
    digest: str = ""


def read_judgements(
    dataset: Dataset, task: Task, found: Survey, rejections: Rejections
) -> Judgements:
    """Return the judgements of a task; rows that cannot be read are counted in `rejections`."""
    judged, sha = Judgements(), hashlib.sha256()
    for one in dataset.judgements(task):
        if isinstance(one, Broken):
            rejections.add(one.where, BROKEN, one.reason)
            continue
        judged.grades.setdefault(one.query, {})[one.candidate] = one.grade
        judged.unknown += not found.holds(one.candidate)
        sha.update(f"{one.query}\0{one.candidate}\0{one.grade}\n".encode())
    judged.digest = sha.hexdigest()[:16]
    return judged


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """The figures of a task, the headline of each query, and the poorest queries."""

    result: TaskResult
    headlines: list[float]
    poor: list[Poor]


@dataclass
class _Tally:
    """What is gathered while the queries go by."""

    values: dict[str, list[float]]
    groups: dict[str, list[float]] = field(default_factory=dict)
    rankings: list[Ranking] = field(default_factory=list)
    poor: list[tuple[float, str, Poor]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    asked: set[str] = field(default_factory=set)
    wanted: set[str] = field(default_factory=set)


def score_task(
    task: Task,
    way: Way,
    queries: Iterator[Query],
    answers: Mapping[str, Answer],
    judged: Judgements,
    folder: Path,
) -> ScoredRun:
    """Compute the figures of a task one way, and write the values of each query down."""
    metrics = {name: metric(name) for name in task.metrics}
    tally = _Tally({name: [] for name in metrics})
    name = f"{task.name}.{way.value}"
    (folder / SCORES).mkdir(exist_ok=True)
    with written_whole(folder / SCORES / f"{name}.jsonl") as file:
        for query in queries:
            tally.asked.add(query.id)
            ranking = _ranking(task, query, answers, judged.grades, tally.counts)
            if ranking is None:
                continue
            row = {name: measure(ranking) for name, measure in metrics.items()}
            file.write(json.dumps({"query": query.id} | row) + "\n")
            _add(tally, task, way, query, ranking, row)
    return _scored(task, way, tally, list(answers.values()), judged)


def _ranking(
    task: Task, query: Query, answers: Mapping[str, Answer], grades: Grades, counts: Counter[str]
) -> Ranking | None:
    """Return what a query found, or None, counted, when it says nothing."""
    mine, answer = grades.get(query.id, {}), answers.get(query.id)
    if not any(grade > 0 for grade in mine.values()):
        counts["unjudged"] += 1
        return None
    if answer is None:
        counts["not asked"] += 1
        return None
    counts["refused"] += bool(answer.refusal)
    ids = [hit.id for hit in answer.hits]
    modalities = [hit.modality for hit in answer.hits]
    return Ranking(ids, mine, modalities, query.wanted or task.wanted)


def _add(
    tally: _Tally, task: Task, way: Way, query: Query, ranking: Ranking, row: dict[str, float]
) -> None:
    for name, value in row.items():
        tally.values[name].append(value)
    headline = row[task.headline]
    for group in query.groups:
        tally.groups.setdefault(group, []).append(headline)
    shown = Ranking(ranking.found[:SHARE_AT], {}, ranking.modalities[:SHARE_AT])
    tally.rankings.append(shown)
    tally.wanted.add(ranking.wanted.value if ranking.wanted else "any")
    order = hashlib.sha256(f"{task.name} {query.id}".encode()).hexdigest()
    poor = Poor(task.name, way.value, query, headline, tuple(ranking.relevant), shown.found)  # type: ignore[arg-type]
    tally.poor = sorted([*tally.poor, (headline, order, poor)], key=lambda one: one[:2])[:WORST]


def _scored(
    task: Task, way: Way, tally: _Tally, answers: list[Answer], judged: Judgements
) -> ScoredRun:
    share = share_by_modality(tally.rankings, SHARE_AT)
    result = TaskResult(
        task=task.name,
        way=way.value,
        headline=task.headline,
        wanted=", ".join(sorted(tally.wanted)) if tally.wanted != {"any"} else "",
        queries=len(tally.rankings),
        figures={name: estimate_mean(values) for name, values in tally.values.items()},
        groups={name: float(np.mean(values)) for name, values in sorted(tally.groups.items())},
        share={modality.value: part for modality, part in share.items()},
        latency_ms=_latency(answers),
        pairs=sum(answer.judged for answer in answers),
        rerank_outcomes=_counts(answer.outcome for answer in answers if answer.outcome),
        degradations=_counts(one for answer in answers for one in answer.degradations),
        target_sources=_counts(a.target_source for a in answers if a.target_source),
        refused=tally.counts["refused"],
        not_asked=tally.counts["not asked"],
        unjudged=tally.counts["unjudged"],
        unknown=judged.unknown,
        judgements=judged.digest,
        unknown_queries=len(judged.grades.keys() - tally.asked),
    )
    return ScoredRun(result, tally.values[task.headline], [poor for _, _, poor in tally.poor])


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _latency(answers: list[Answer]) -> dict[str, tuple[float, float]]:
    stages: dict[str, list[float]] = {}
    for answer in answers:
        for stage, seconds in answer.seconds.items():
            stages.setdefault(stage, []).append(seconds * 1000)
    return {
        stage: (float(np.percentile(found, 50)), float(np.percentile(found, 99)))
        for stage, found in stages.items()
    }
