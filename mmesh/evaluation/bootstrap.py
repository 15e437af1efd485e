"""Bootstrap confidence intervals of means over queries, and the paired bootstrap test.

Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 16; for retrieval:
Sakai, SIGIR 2006; Smucker, Allan and Carterette, CIKM 2007.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better B is than A on the same queries."""

    estimate: Estimate
    p_value: float
    """Two-sided: how often a difference as large arises when there is none."""


def resampled_means(values: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """Return the means of `resamples` samples that were drawn with replacement.

    Draws how often each distinct value is drawn, which is the same distribution and cheap for
    metrics that know few values.
    """
    distinct, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    total = int(counts.sum())
    if total == 0:
        return np.zeros(resamples)
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, 4_000_000 // len(distinct))  # bounds the memory
    for start in range(0, resamples, step):
        drawn = random.multinomial(total, counts / total, size=min(step, resamples - start))
        means[start : start + step] = drawn @ distinct / total
    return means


def estimate_mean(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """Return the mean over queries, with its interval."""
    given = np.asarray(values, np.float64)
    if given.size == 0:
        return Estimate(0.0, 0.0, 0.0)
    return _estimate(float(given.mean()), resampled_means(given, seed=seed))


def estimate_macro_mean(tasks: Sequence[ArrayLike], *, seed: int = 0) -> Estimate:
    """Return the mean of the tasks' means, each task resampled for itself."""
    given = [np.asarray(values, np.float64) for values in tasks]
    given = [values for values in given if values.size]
    if not given:
        return Estimate(0.0, 0.0, 0.0)
    drawn = [resampled_means(values, seed=seed + number) for number, values in enumerate(given)]
    mean = float(np.mean([values.mean() for values in given]))
    return _estimate(mean, np.mean(drawn, axis=0))


def compare_paired(
    a: ArrayLike, b: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES
) -> Difference:
    """Return how much the mean of `b` is above that of `a`; both in the order of the same queries.

    The test shifts the differences to mean 0 and asks how often a resampled mean is as far from 0
    as the observed one.

    Raises:
        ValueError: they are not of one length.
    """
    return compare_paired_tasks([(a, b)], seed=seed, resamples=resamples)


def compare_paired_tasks(
    tasks: Sequence[tuple[ArrayLike, ArrayLike]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:
    """Return how much the mean of the tasks' means is better, each task resampled for itself.

    Raises:
        ValueError: the two sides of a task are not of one length.
    """
    differences = []
    for a, b in tasks:
        first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if first.shape != second.shape:
            raise ValueError(f"{len(first)} and {len(second)} queries cannot be paired")
        if first.size:
            differences.append(second - first)
    if not differences:
        return Difference(Estimate(0.0, 0.0, 0.0), 1.0)
    observed = float(np.mean([one.mean() for one in differences]))
    drawn = [
        resampled_means(one, seed=seed + number, resamples=resamples)
        for number, one in enumerate(differences)
    ]
    means: Floats = np.mean(drawn, axis=0)
    as_far = np.abs(means - observed) >= abs(observed) - 1e-12
    p_value = (int(as_far.sum()) + 1) / (len(means) + 1)
    return Difference(_estimate(observed, means), min(1.0, p_value))


def _estimate(value: float, means: Floats) -> Estimate:
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(value, min(float(low), value), max(float(high), value))
