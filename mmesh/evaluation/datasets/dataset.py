"""The protocol of a data set, and the rows that its readers yield."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mmesh.content import Modality


class DatasetError(ValueError):
    """A data set cannot be read at all: a file is missing, cut off, or of another kind."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that gives nothing, with its file and line."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class PoolRow:
    """A candidate, its picture still a file."""

    id: str
    text: str
    image: Path | None
    pools: tuple[str, ...]
    """Local pools that it belongs to."""
    where: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Attributes that a task filters by, beside `pools`."""


@dataclass(frozen=True, slots=True)
class Query:
    """What to search with, its picture still a file."""

    id: str
    text: str
    image: Path | None
    where: str
    instruction: str = ""
    wanted: Modality | None = None
    """Modality that it is after; None means that of its task."""
    excluded: tuple[str, ...] = ()
    """Candidates that are taken out of its hits, such as its own picture."""
    among: tuple[str, ...] = ()
    """The only candidates that it is searched among; empty means the whole pool."""
    groups: tuple[str, ...] = ()
    """Kinds of query that it belongs to, for a breakdown."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """How relevant one candidate is for one query; 0 is not at all."""

    query: str
    candidate: str
    grade: int
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Task:
    """Queries that are measured together."""

    name: str
    pool: str
    """Its local pool; see `PoolRow.pools`."""
    headline: str
    """The metric that publications print."""
    metrics: tuple[str, ...]
    wanted: Modality | None = None
    """Modality of the candidates that it is after."""
    number: int = 0
    """M-BEIR's number of the kind of task, for run files."""
    judged: bool = True
    """Whether judgements are published; without them there are only run files."""


class Dataset(Protocol):
    """Queries, a pool and judgements, each streamed in an order that is the same every time."""

    @property
    def name(self) -> str:
        """Name of the data set and its split: lower-case letters, digits and `-`."""

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of its figures must know, such as which of several prompts was taken."""

    @property
    def tasks(self) -> Sequence[Task]:
        """Its tasks."""

    @property
    def unions(self) -> bool:
        """Whether its tasks are also measured on the union of their pools."""

    @property
    def pool_files(self) -> Sequence[Path]:
        """The files that say what the pool holds; when one changes, the pool is another."""

    def pool(self) -> Iterator[PoolRow | Broken]:
        """Yield the candidates of all its tasks."""

    def queries(self, task: Task) -> Iterator[Query | Broken]:
        """Yield the queries of a task."""

    def judgements(self, task: Task) -> Iterator[Judgement | Broken]:
        """Yield the judgements of a task; `Broken` where a row cannot be read."""
