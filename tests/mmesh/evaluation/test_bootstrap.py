"""Intervals that hold what they promise, and a test that finds differences and none."""

from __future__ import annotations

import numpy as np
import pytest

from mmesh.evaluation.bootstrap import (
    compare_paired,
    estimate_macro_mean,
    estimate_mean,
    resampled_means,
)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for number in range(300):
        found = estimate_mean(random.random(200) < 0.3, seed=number)
        covered += found.low <= 0.3 <= found.high
    assert 0.91 <= covered / 300 <= 0.98


def test_resampling_distinct_values_is_resampling_queries() -> None:
    values = np.random.default_rng(1).random(50)
    random = np.random.default_rng(2)
    plain = random.choice(values, (2000, 50)).mean(axis=1)
    ours = resampled_means(values, seed=3)
    assert ours.mean() == pytest.approx(plain.mean(), abs=0.005)
    assert ours.std() == pytest.approx(plain.std(), rel=0.1)


def test_a_constant_has_no_width_and_nothing_has_the_mean_zero() -> None:
    assert (estimate_mean([1.0] * 9).low, estimate_mean([1.0] * 9).high) == (1, 1)
    assert estimate_mean([]).value == 0
    assert estimate_macro_mean([]).value == 0


def test_tasks_weigh_the_same_however_many_queries_they_have() -> None:
    found = estimate_macro_mean([[1.0] * 1000, [0.0, 1.0], []])
    assert found.value == 0.75
    assert found.low < 0.75 < found.high


def test_equal_seeds_give_equal_intervals() -> None:
    values = np.random.default_rng(0).random(40)
    assert estimate_mean(values, seed=5) == estimate_mean(values, seed=5)
    assert estimate_mean(values, seed=5) != estimate_mean(values, seed=6)


def test_a_difference_on_every_query_is_significant_and_none_is_not() -> None:
    random = np.random.default_rng(0)
    a = random.random(200)
    better = compare_paired(a, a + 0.05 + 0.02 * random.standard_normal(200))
    assert better.p_value < 0.001
    assert better.estimate.low > 0
    assert compare_paired(a, a).p_value == 1
    noise = compare_paired(a, a + 0.3 * random.standard_normal(200))
    assert noise.estimate.low < 0 < noise.estimate.high
    assert noise.p_value > 0.05


def test_under_no_difference_small_p_values_are_rare() -> None:
    random = np.random.default_rng(0)
    found = [
        compare_paired(*random.integers(0, 4, (2, 80)), seed=number).p_value < 0.05
        for number in range(200)
    ]
    assert np.mean(found) < 0.1


def test_other_queries_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="paired"):
        compare_paired([1.0], [1.0, 0.0])
