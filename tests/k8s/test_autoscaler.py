"""The model of Kubernetes' autoscaler decides as its documentation says, and ours as their READMEs.

Numbers are those of
https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/ (ratio,
tolerance, several metrics, policies, windows), of the blog about tolerances (2025-04-28) and of
KEP-853 (stories 1, 2 and 5).
"""

import itertools
from functools import cache

import pytest

from tools.k8s.autoscaler import (
    SYNC_S,
    Autoscaler,
    Bounds,
    Direction,
    Policy,
    Reading,
    wanted_by,
)
from tools.k8s.check import ROOT
from tools.k8s.manifests import render
from tools.k8s.scalers import scalers_of

DEFAULT_UP = Direction(0, (Policy("Percent", 100, 15), Policy("Pods", 4, 15)))
DEFAULT_DOWN = Direction(300, (Policy("Percent", 100, 15),))
AT_ONCE = Direction(0, (Policy("Percent", 100, 15),))


def scaler(replicas, up=DEFAULT_UP, down=DEFAULT_DOWN, least=1, most=1000):
    return Autoscaler(Bounds(least, most, up, down), replicas)


def path(one, target_of, times):
    """Return the numbers of pods at these times, when metrics recommend `target_of(time)`."""
    return [one.decide(at, [Reading(float(target_of(at)), 1.0)]) for at in times]


@pytest.mark.parametrize(
    ("value", "target", "replicas", "wanted"),
    [
        (0.2 * 3, 0.1, 3, 6),  # 200m where 100m are wanted: doubled
        (0.05 * 4, 0.1, 4, 2),  # 50m: halved
        (50 * 0.9, 0.75, 50, 60),  # 90 % where 75 % are wanted
        (50 * 0.8, 0.75, 50, 50),  # within a tenth: left alone
        (1.0 * 10, 1.1, 10, 10),
        (7.001, 1, 3, 8),  # always up
        (0.0, 1, 3, 0),
    ],
)
def test_one_metric_wants_the_ceiling_unless_it_is_within_the_tolerance(
    value, target, replicas, wanted
):
    assert wanted_by(value, target, replicas) == wanted


def test_the_metric_that_wants_most_wins():
    one = scaler(3, up=AT_ONCE)
    assert one.decide(0, [Reading(4.0, 1.0), Reading(6.0, 1.0), Reading(0.5, 1.0)]) == 6


def test_a_metric_without_a_value_keeps_or_adds_pods_and_never_removes_one():
    one = scaler(6, down=AT_ONCE)
    assert one.decide(0, [Reading(2.0, 1.0), Reading(None, 1.0)]) == 6
    assert one.decide(15, [Reading(None, 1.0)]) == 6
    assert one.decide(30, [Reading(9.0, 1.0), Reading(None, 1.0)]) == 9
    assert one.decide(45, [Reading(2.0, 1.0), Reading(2.0, 1.0)]) == 2


def test_policies_down_allow_the_one_that_changes_most_unless_told_otherwise():
    # Of the documentation: 80 pods down to 10; 10 % are 8 pods, then 7.2 rounded up, and from 40 on
    # 4 pods are more than a tenth of them.
    down = (Policy("Pods", 4, 60), Policy("Percent", 10, 60))
    times = [60.0 * minute for minute in range(14)]
    found = path(scaler(80, down=Direction(0, down)), lambda _: 10, times)
    assert found == [72, 64, 57, 51, 45, 40, 36, 32, 28, 24, 20, 16, 12, 10]
    slow = path(scaler(80, down=Direction(0, down, "Min")), lambda _: 10, times)
    assert slow[:3] == [76, 72, 68]
    off = path(scaler(80, down=Direction(0, down, "Disabled")), lambda _: 10, times)
    assert set(off) == {80}


def test_policies_count_what_was_done_within_their_period():
    up = Direction(0, (Policy("Pods", 4, 60),))
    assert path(scaler(10, up), lambda _: 50, [0, 15, 30, 45, 60, 75]) == [14, 14, 14, 14, 18, 18]


def test_up_as_fast_and_as_slowly_as_the_proposal_says():
    fast = Direction(0, (Policy("Percent", 900, 60),))
    assert path(scaler(1, fast), lambda _: 1000, [0, 60, 120]) == [10, 100, 1000]
    slow = Direction(0, (Policy("Pods", 1, 600),))
    minutes = [600.0 * n for n in range(4)]
    assert path(scaler(1, slow), lambda _: 100, minutes) == [2, 3, 4, 5]
    assert path(scaler(1), lambda _: 100, [0, 15, 30, 45]) == [5, 10, 20, 40]  # the default


def test_down_only_to_the_most_that_was_wanted_within_the_window():
    # As in the proposal's story 5, with twice its numbers: of the last five minutes the largest.
    down = Direction(300, DEFAULT_DOWN.policies)
    said = dict(zip(range(0, 301, 60), (20, 16, 14, 16, 16, 12), strict=True))
    one = scaler(20, down=down)
    assert path(one, said.__getitem__, said) == [20, 20, 20, 20, 20, 16]


def test_up_only_to_the_least_that_was_wanted_within_the_window():
    one = scaler(4, up=Direction(120, AT_ONCE.policies))
    assert path(one, lambda at: 8 if at % 60 else 4, range(0, 241, 30)) == [4] * 9


def test_bounds_hold_at_once():
    assert scaler(1, least=2).decide(0, [Reading(None, 1.0)]) == 2
    assert scaler(12, most=10).decide(0, [Reading(None, 1.0)]) == 10
    assert scaler(9, up=AT_ONCE, most=10).decide(0, [Reading(99.0, 1.0)]) == 10


@cache
def committed(combination):
    return scalers_of(render(ROOT / "k8s" / combination))


def test_keda_and_hpa_are_told_the_same():
    keda, hpa = committed("overlays/production"), committed("tests/hpa")
    names = ("mmesh-gateway", "mmesh-encoder", "mmesh-reranker")
    for name in names:
        assert keda[name].bounds == hpa[name].bounds
        asked = [(f"sum({one.query})", one.target) for one in keda[name].triggers]
        assert asked == [(one.query, one.target) for one in hpa[name].triggers]
    shard = next(one for name, one in keda.items() if name not in names)
    other = next(one for name, one in hpa.items() if name not in names)
    assert (shard.bounds.up, shard.bounds.down) == (other.bounds.up, other.bounds.down)
    assert [one.target for one in shard.triggers] == [one.target for one in other.triggers]


@pytest.mark.parametrize("combination", ["overlays/production", "tests/hpa"])
def test_committed_scalers_are_fast_up_slow_down_and_still_while_nothing_is_known(combination):
    for name, one in committed(combination).items():
        unknown = [Reading(None, trigger.target) for trigger in one.triggers]
        much = [Reading(1e6, trigger.target) for trigger in one.triggers]
        none = [Reading(0.0, trigger.target) for trigger in one.triggers]
        model, now, most = Autoscaler(one.bounds, one.bounds.least), 0.0, one.bounds.most
        seen = []
        while model.replicas < most and now < 600:
            seen.append(model.decide(now, much))
            now += SYNC_S
        assert (model.replicas, now <= 120) == (most, True), (name, seen)
        for _ in range(1000):
            now += SYNC_S
            assert model.decide(now, unknown) == most, name
        down = [model.decide(now + SYNC_S * n, none) for n in range(1, 240)]
        assert down[-1] == one.bounds.least, name
        assert all(before - after in (0, 1) for before, after in itertools.pairwise(down))
