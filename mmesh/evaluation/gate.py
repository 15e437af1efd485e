"""Thresholds that a run must reach: a regression gate for CI."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmesh.evaluation.metrics import LOWER_IS_BETTER, metric
from mmesh.evaluation.results import Results

HEADLINE = "headline"


@dataclass(frozen=True, slots=True)
class Threshold:
    """The least that a metric must be; for a metric of which less is better, the most."""

    metric: str
    value: float
    task: str = ""
    """Empty: the mean over all tasks that have the metric."""

    def __str__(self) -> str:
        task = f"{self.task}:" if self.task else ""
        return f"{task}{self.metric}={self.value:g}"


def parse_threshold(text: str) -> Threshold:
    """Read `METRIC=VALUE` or `TASK:METRIC=VALUE`; the metric may be `headline`.

    Raises:
        ValueError: it is written otherwise, or there is no such metric.
    """
    name, _, value = text.rpartition("=")
    task, _, name = name.rpartition(":")
    if name != HEADLINE:
        metric(name)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):  # nothing is below NaN
        raise ValueError(f"{value!r} is no number; write it like hit@5=0.4")
    return Threshold(name, number, task)


def failures(results: Results, thresholds: list[Threshold]) -> list[str]:
    """Return a line for each threshold that is missed, in any of the pools.

    One that nothing can be held against is missed.
    """
    if not any(task.queries for task in results.tasks):
        return [f"{one}: no query is judged" for one in thresholds]
    return [line for one in thresholds for way in results.ways for line in _miss(results, way, one)]


def _miss(results: Results, way: str, threshold: Threshold) -> list[str]:
    held = [
        (task, task.figures[name].value)
        for task in results.tasks
        if task.way == way and threshold.task in ("", task.task)
        for name in [task.headline if threshold.metric == HEADLINE else threshold.metric]
        if name in task.figures
    ]
    if not held:
        return [f"{threshold}: no task has it ({way})"]
    if empty := [task.task for task, _ in held if not task.queries]:
        return [f"{threshold}: no query is judged of {', '.join(empty)} ({way})"]
    mean = sum(value for _, value in held) / len(held)
    lower = threshold.metric in LOWER_IS_BETTER
    missed = mean > threshold.value if lower else mean < threshold.value
    return [f"{threshold}: is {mean:.4f} ({way})"] if missed else []
