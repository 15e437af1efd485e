"""Two runs on the same queries: what differs, by how much, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmesh.evaluation.bootstrap import Difference, compare_paired, compare_paired_tasks
from mmesh.evaluation.datasets.dataset import DatasetError
from mmesh.evaluation.metrics import LOWER_IS_BETTER
from mmesh.evaluation.results import Results, TaskResult, read_results, read_scores

SIGNIFICANT = 0.05
AVERAGE = "average"


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric of one task in two runs, over the queries that both have."""

    task: str
    way: str
    metric: str
    queries: int
    a: float
    b: float
    difference: Difference

    @property
    def worse(self) -> bool:
        """Whether B is on the wrong side of A, by chance or not."""
        change = self.difference.estimate.value
        return change > 0 if self.metric in LOWER_IS_BETTER else change < 0


def compare_runs(a: Path, b: Path, metric: str = "") -> list[Compared]:
    """Return the differences of the headlines, or of one metric, and of their averages.

    Raises:
        DatasetError: one is no run, they share no task, or their tasks are judged otherwise.
    """
    first, second = read_results(a), read_results(b)
    pairs = [
        (one, other) for one in first.tasks if (other := second.of(one.task, one.way)) is not None
    ]
    if not pairs:
        raise DatasetError(f"{a} ({first.dataset}) and {b} ({second.dataset}) share no task")
    for one, other in pairs:
        if one.judgements != other.judgements:
            raise DatasetError(f"{one.task} of {b} has other judgements than that of {a}")
    values = [
        (one, metric or one.headline, _paired(a, b, one, metric or one.headline))
        for one, _ in pairs
        if not metric or metric in one.figures
    ]
    if not values:
        raise DatasetError(f"no task of {a} has the metric {metric}")
    tasks = [
        Compared(one.task, one.way, name, len(x), _mean(x), _mean(y), compare_paired(x, y))
        for one, name, (x, y) in values
    ]
    return tasks + _averages(first, metric, values)


def _paired(a: Path, b: Path, task: TaskResult, metric: str) -> tuple[list[float], list[float]]:
    first, second = read_scores(a, task.name), read_scores(b, task.name)
    shared = [query for query in first if query in second]
    return [first[q][metric] for q in shared], [second[q][metric] for q in shared]


def _averages(
    first: Results,
    metric: str,
    values: Sequence[tuple[TaskResult, str, tuple[list[float], list[float]]]],
) -> list[Compared]:
    """Return the mean over the tasks of each way, where there are several."""
    found = []
    for way in first.ways:
        pairs = [pair for one, _, pair in values if one.way == way]
        if len(pairs) < 2:
            continue
        a, b = (_mean([_mean(pair[side]) for pair in pairs]) for side in (0, 1))
        queries = sum(len(pair[0]) for pair in pairs)
        difference = compare_paired_tasks(pairs)
        found.append(Compared(AVERAGE, way, metric or "headline", queries, a, b, difference))
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def regressions(compared: Sequence[Compared]) -> list[Compared]:
    """Return what is worse by more than chance.

    Averages are tested by themselves; tasks together, by Holm's step-down correction (1979), since
    among sixteen tasks one is likely to look worse.
    """
    worse = [one for one in compared if one.worse]
    averages = [one for one in worse if one.task == AVERAGE]
    found = [one for one in averages if one.difference.p_value < SIGNIFICANT]
    total = sum(one.task != AVERAGE for one in compared)
    tasks = sorted(
        (one for one in worse if one.task != AVERAGE), key=lambda one: one.difference.p_value
    )
    for number, one in enumerate(tasks):
        if one.difference.p_value >= SIGNIFICANT / (total - number):
            break
        found.append(one)
    return found
