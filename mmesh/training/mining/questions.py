"""Queries to mine for, each with the candidates that answer it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmesh.content import Modality
from mmesh.evaluation.datasets.dataset import Broken, Dataset, Query
from mmesh.evaluation.datasets.own import query_of, relevant_of
from mmesh.evaluation.datasets.rows import json_rows


@dataclass(frozen=True, slots=True)
class Question:
    """A query of a training set."""

    query: Query
    positives: tuple[str, ...]
    """Ids of the candidates that answer it, at least one."""
    wanted: Modality | None
    """Modality asked for; None for that of the positives."""


def questions_of_file(path: Path) -> Iterator[Question | Broken]:
    """Yield the queries of a JSONL file in our own format, which says what is `relevant`.

    Raises:
        DatasetError: the file cannot be read.
    """
    for row in json_rows(path):
        if isinstance(row, Broken):
            yield row
            continue
        query = query_of(row, path.parent)
        if isinstance(query, Broken):
            yield query
            continue
        relevant = list(relevant_of(row))
        broken = next((one for one in relevant if isinstance(one, Broken)), None)
        if broken is not None:
            yield broken
            continue
        ids = tuple(
            one.candidate for one in relevant if not isinstance(one, Broken) and one.grade > 0
        )
        yield _question(query, ids, query.wanted)


def questions_of_dataset(dataset: Dataset) -> Iterator[Question | Broken]:
    """Yield the queries of all tasks of a data set; each task's judgements are held in memory.

    A row that several tasks ask counts for the first: CIRR and FashionIQ search the same queries
    among other candidates in each.

    Raises:
        DatasetError: a file cannot be read.
    """
    seen: set[tuple[str, str]] = set()
    for task in dataset.tasks:
        relevant: dict[str, dict[str, None]] = defaultdict(dict)
        for one in dataset.judgements(task):
            if isinstance(one, Broken):
                yield one
            elif one.grade > 0:
                relevant[one.query][one.candidate] = None
        for query in dataset.queries(task):
            if isinstance(query, Broken):
                yield query
            elif (query.id, query.where) not in seen:
                seen.add((query.id, query.where))
                wanted = query.wanted or task.wanted
                yield _question(query, tuple(relevant.get(query.id, ())), wanted)


def _question(
    query: Query, positives: tuple[str, ...], wanted: Modality | None
) -> Question | Broken:
    if not positives:
        return Broken(query.where, f"query {query.id!r} has no positive")
    return Question(query, positives, wanted)
