"""The decision of Kubernetes' HorizontalPodAutoscaler, as a model that tests feed with numbers.

It follows the controller (`autoscaling/v2`, metrics of type External with an AverageValue): from
each metric ceil(sum / target) unless that is within the tolerance, the largest of them, then the
stabilization windows, then the policies. A metric without a value can only keep or add pods.
https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

TOLERANCE = 0.1
"""Of the controller manager, unless its `--horizontal-pod-autoscaler-tolerance` says otherwise."""
SYNC_S = 15.0
"""Between two decisions, unless its `--horizontal-pod-autoscaler-sync-period` says otherwise."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How far the number of pods may be changed within a period."""

    kind: Literal["Pods", "Percent"]
    value: int
    period_s: float


@dataclass(frozen=True, slots=True)
class Direction:
    """How the number of pods goes up, or down."""

    window_s: float
    """In which all recommendations must agree on a change."""
    policies: tuple[Policy, ...]
    select: Literal["Max", "Min", "Disabled"] = "Max"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Between which numbers a workload is scaled, and how."""

    least: int
    most: int
    up: Direction
    down: Direction


@dataclass(frozen=True, slots=True)
class Reading:
    """What a metric says now."""

    value: float | None
    """The sum over all pods; None where the query failed or gave nothing."""
    target: float
    """For each pod."""


@dataclass(frozen=True, slots=True)
class _Event:
    at_s: float
    count: int


@dataclass
class Autoscaler:
    """Remembers what it recommended and did; `decide` at each sync."""

    bounds: Bounds
    replicas: int
    _recommended: list[_Event] = field(default_factory=list)
    _added: list[_Event] = field(default_factory=list)
    _removed: list[_Event] = field(default_factory=list)

    def decide(self, now_s: float, readings: Sequence[Reading]) -> int:
        """Return how many pods there shall be from now on; time never goes back."""
        bounded = min(max(self.replicas, self.bounds.least), self.bounds.most)
        if bounded != self.replicas:  # at once, whatever the policies
            self._scale(now_s, bounded)
        elif (wanted := self._wanted(readings)) is not None:
            stable = self._stabilized(now_s, wanted)
            self._scale(now_s, self._allowed(now_s, stable))
        return self.replicas

    def _wanted(self, readings: Sequence[Reading]) -> int | None:
        """Return what the metrics recommend, None to leave things as they are."""
        now = self.replicas
        known = [wanted_by(one.value, one.target, now) for one in readings if one.value is not None]
        is_whole = len(known) == len(readings)
        if not known or (not is_whole and max(known) < now):
            return None
        return max(known)

    def _stabilized(self, now_s: float, wanted: int) -> int:
        """Return the safest of what was recommended within the windows, and remember this one."""
        self._recommended = self._recommended or [_Event(now_s, self.replicas)]
        up, down = self.bounds.up.window_s, self.bounds.down.window_s
        lowest = min([wanted, *(r.count for r in self._recommended if r.at_s > now_s - up)])
        highest = max([wanted, *(r.count for r in self._recommended if r.at_s > now_s - down)])
        self._recommended = _since(self._recommended, now_s - max(up, down))
        self._recommended.append(_Event(now_s, wanted))
        return min(max(self.replicas, lowest), highest)

    def _allowed(self, now_s: float, wanted: int) -> int:
        """Return how much of the way to `wanted` the policies allow now."""
        now, bounds = self.replicas, self.bounds
        if wanted > now:
            limit = max(now, self._limit_up(now_s))
            return min(wanted, bounds.most, limit)
        if wanted < now:
            limit = min(now, self._limit_down(now_s))
            return max(wanted, bounds.least, limit)
        return wanted

    def _limit_up(self, now_s: float) -> int:
        limits = []
        for policy in self.bounds.up.policies:
            start = self._at_start(now_s, policy.period_s)
            if policy.kind == "Pods":
                limits.append(start + policy.value)
            else:
                limits.append(_ceil(start * (1 + policy.value / 100)))
        return self._selected(self.bounds.up, least=min(limits), most=max(limits))

    def _limit_down(self, now_s: float) -> int:
        limits = []
        for policy in self.bounds.down.policies:
            start = self._at_start(now_s, policy.period_s)
            if policy.kind == "Pods":
                limits.append(start - policy.value)
            else:
                limits.append(int(start * (1 - policy.value / 100)))
        return self._selected(self.bounds.down, least=max(limits), most=min(limits))

    def _selected(self, way: Direction, *, least: int, most: int) -> int:
        """Return the limit of the policy that changes least or most, as the manifest chooses."""
        if way.select == "Disabled":
            return self.replicas
        return least if way.select == "Min" else most

    def _at_start(self, now_s: float, period_s: float) -> int:
        """Return how many pods there were when the period that ends now began."""
        added = sum(one.count for one in _since(self._added, now_s - period_s))
        removed = sum(one.count for one in _since(self._removed, now_s - period_s))
        return self.replicas - added + removed

    def _scale(self, now_s: float, replicas: int) -> None:
        change = replicas - self.replicas
        if change:
            events = self._added if change > 0 else self._removed
            events.append(_Event(now_s, abs(change)))
        self.replicas = replicas


def wanted_by(value: float, target: float, replicas: int) -> int:
    """Return how many pods one metric recommends; the controller counts in thousandths."""
    total, share = int(value * 1000), int(target * 1000)
    if abs(total / (share * replicas) - 1) <= TOLERANCE:
        return replicas
    return math.ceil(total / share)


def _ceil(value: float) -> int:
    """Round up, but not for what is no more than an error of floating point."""
    return math.ceil(round(value, 9))


def _since(events: Sequence[_Event], at_s: float) -> list[_Event]:
    return [one for one in events if one.at_s > at_s]
