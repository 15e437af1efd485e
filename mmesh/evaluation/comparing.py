"""Two runs on the same queries: what differs, by how much, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmesh.evaluation.bootstrap import (
    RESAMPLES,
    Difference,
    compare_paired,
    compare_paired_tasks,
)
from mmesh.evaluation.datasets.dataset import Dataset, DatasetError
from mmesh.evaluation.metrics import LOWER_IS_BETTER
from mmesh.evaluation.results import Results, TaskResult, read_results, read_scores

SIGNIFICANT = 0.05
RESAMPLES_A_TASK = 40
"""So that the smallest p value is below the first bound of Holm's correction."""
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
    lost: int = 0
    """Queries of A that B lacks, such as those whose picture is missing now."""

    @property
    def worse(self) -> bool:
        """Whether B is on the wrong side of A, by chance or not."""
        change = self.difference.estimate.value
        return change > 0 if self.metric in LOWER_IS_BETTER else change < 0


def compare_runs(a: Path, b: Path, metric: str = "") -> list[Compared]:
    """Return the differences of the headlines, or of one metric, and of their averages.

    Raises:
        DatasetError: one is no run, they share no task or no query of a task, or their tasks are
            judged otherwise.
    """
    first, second = read_results(a), read_results(b)
    pairs = [
        (one, other)
        for one in first.tasks
        if one.queries and (other := second.of(one.task, one.way)) is not None
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
    resamples = max(RESAMPLES, RESAMPLES_A_TASK * len(values))
    tasks = [_compared(one, name, pair, resamples) for one, name, pair in values]
    return tasks + _averages(first, metric, values)


def tasks_lost(a: Path, b: Path) -> list[TaskResult]:
    """Return the tasks of run A that run B lacks altogether, each way by itself."""
    second = read_results(b)
    return [
        one for one in read_results(a).tasks if one.queries and not second.of(one.task, one.way)
    ]


def _compared(task: TaskResult, metric: str, pair: Pair, resamples: int) -> Compared:
    a, b, way = _mean(pair.a), _mean(pair.b), task.way
    difference = compare_paired(pair.a, pair.b, resamples=resamples)
    return Compared(task.task, way, metric, len(pair.a), a, b, difference, pair.lost)


def check_baseline(run: Path, dataset: Dataset, folder: Path) -> None:
    """Make sure that a run in `folder` can be compared with an earlier one, before it is made.

    Raises:
        DatasetError: that is no run, shares no task, or is what `folder` holds.
    """
    before = read_results(run)
    if not {one.task for one in before.tasks} & {task.name for task in dataset.tasks}:
        raise DatasetError(f"{run} ({before.dataset}) shares no task with {dataset.name}")
    places = {run.resolve()} if run.is_dir() else {run.resolve().parent, run.parent.resolve()}
    if folder.resolve() in places:
        raise DatasetError(
            f"the baseline {run} is in the folder of this run, which would be compared with itself;"
            " give this run another one with --out FOLDER"
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """The values of the queries that two runs share, and how many of A's B lacks."""

    a: list[float]
    b: list[float]
    lost: int


def _paired(a: Path, b: Path, task: TaskResult, metric: str) -> Pair:
    first, second = read_scores(a, task.name), read_scores(b, task.name)
    shared = [query for query in first if query in second]
    if not shared:
        raise DatasetError(f"{a} and {b} share no query of {task.task} ({task.way})")
    try:
        values = [(first[query][metric], second[query][metric]) for query in shared]
    except KeyError:
        raise DatasetError(f"scores of {task.name} in {a} or {b} lack {metric}") from None
    return Pair([x for x, _ in values], [y for _, y in values], len(first) - len(shared))


def _averages(
    first: Results,
    metric: str,
    values: Sequence[tuple[TaskResult, str, Pair]],
) -> list[Compared]:
    """Return the mean over the tasks of each way, where there are several."""
    found = []
    for way in first.ways:
        pairs = [(pair.a, pair.b) for one, _, pair in values if one.way == way]
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
