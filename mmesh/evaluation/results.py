"""What an evaluation found: figures by task and pool, and what they rest on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmesh.evaluation.bootstrap import Estimate
from mmesh.evaluation.datasets.dataset import DatasetError
from mmesh.evaluation.whole_files import written_whole

FORMAT = 1
RESULTS, SCORES = "run.json", "scores"
"""Names of the file and of the folder with the values of each query."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Figures of one task, searched one way."""

    task: str
    way: str
    headline: str
    wanted: str
    """Modalities that its queries are after, with a comma between; empty for any."""
    queries: int
    """Queries that the figures are means over; those that the mesh refused count as 0."""
    figures: Mapping[str, Estimate]
    groups: Mapping[str, float]
    """The headline by kind of query."""
    share: Mapping[str, float]
    """Which part of the first 10 hits has each modality."""
    latency_ms: Mapping[str, tuple[float, float]]
    """Median and 99th percentile by stage."""
    pairs: int
    """Hits that the judge scored."""
    rerank_outcomes: Mapping[str, int]
    """Queries by how much was judged; a judge that reads no pictures skips queries with some."""
    degradations: Mapping[str, int]
    target_sources: Mapping[str, int]
    refused: int
    """Queries that the mesh did not answer."""
    not_asked: int
    """Queries without an answer for want of their picture; they are left out."""
    unjudged: int
    """Queries without a relevant candidate; they are left out."""
    unknown: int
    """Judged candidates that the pool does not hold."""
    judgements: str
    """Hash of the judgements, so that runs of other data are not compared."""
    unknown_queries: int = 0
    """Judged queries that the data set does not hold."""

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.task}.{self.way}"


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that a report says."""

    dataset: str
    notes: tuple[str, ...]
    options: Mapping[str, Any]
    collection: str
    encoder: str
    judge: str
    """Fingerprints of the models."""
    candidates: Mapping[str, int]
    """What the collection holds of the pool, by modality."""
    rejections: Mapping[str, Any]
    tasks: tuple[TaskResult, ...]
    averages: Mapping[str, Estimate] = field(default_factory=dict)
    """Mean of the tasks' headlines by way."""

    def of(self, task: str, way: str) -> TaskResult | None:
        """Return the figures of a task one way."""
        return next((one for one in self.tasks if (one.task, one.way) == (task, way)), None)

    @property
    def ways(self) -> list[str]:
        """The ways that were searched, in order."""
        return list(dict.fromkeys(one.way for one in self.tasks))

    def as_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"format": FORMAT} | asdict(self)


def write_results(results: Results, folder: Path) -> None:
    """Write `run.json`, whole or not at all."""
    text = json.dumps(results.as_json(), indent=1, sort_keys=True)
    with written_whole(folder / RESULTS) as file:
        file.write(text + "\n")


def read_results(path: Path) -> Results:
    """Return what `write_results` wrote, by its file or folder.

    Raises:
        DatasetError: it is no such file.
    """
    file = path / RESULTS if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise ValueError("it is of another version")
        tasks = tuple(_task(one) for one in values.pop("tasks"))
        averages = {way: Estimate(**one) for way, one in values.pop("averages").items()}
        notes = tuple(values.pop("notes"))
        return Results(**values, notes=notes, tasks=tasks, averages=averages)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{file} is no run of `mmesh evaluate`: {error}") from None


def _task(values: dict[str, Any]) -> TaskResult:
    figures = {name: Estimate(**one) for name, one in values.pop("figures").items()}
    latency = {stage: (low, high) for stage, (low, high) in values.pop("latency_ms").items()}
    return TaskResult(**values, figures=figures, latency_ms=latency)


def read_scores(path: Path, name: str) -> dict[str, dict[str, float]]:
    """Return the metrics of each query of a task, by the run's file or folder."""
    folder = path if path.is_dir() else path.parent
    file = folder / SCORES / f"{name}.jsonl"
    try:
        with file.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        return {row.pop("query"): row for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{file} cannot be read: {error}") from None
