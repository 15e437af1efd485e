"""The time between two scrapes: rates of counters, quantiles of histograms, gauges at its end."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mmesh.cli.commands.top.scrape import Labels, Scrape


@dataclass(frozen=True, slots=True)
class Window:
    """Two scrapes of some processes, by name; one that was there once only has gauges alone.

    Labels are given as regular expressions that match the whole value, as in Prometheus.
    """

    before: Mapping[str, Scrape]
    after: Mapping[str, Scrape]

    def of(self, name: str) -> Window:
        """Return the part of one process."""
        before = {name: self.before[name]} if name in self.before else {}
        return Window(before, {name: self.after[name]})

    def gauges(self, name: str, **where: str) -> dict[Labels, list[float]]:
        """Return the values of a gauge by its labels, one from each process."""
        found: dict[Labels, list[float]] = {}
        for scrape in self.after.values():
            for labels, value in _chosen(scrape, name, where):
                found.setdefault(labels, []).append(value)
        return found

    def gauge(self, name: str, how: Callable[[list[float]], float] = sum, **where: str) -> float:
        """Return what `how` makes of all values of a gauge; 0 where there are none."""
        values = [value for values in self.gauges(name, **where).values() for value in values]
        return how(values) if values else 0.0

    def rate(self, name: str, **where: str) -> float:
        """Return how much a counter grew by the second, over all processes and labels."""
        return sum(rate for _, rate in self._rates(name, where))

    def rates(self, name: str, by: str, **where: str) -> dict[str, float]:
        """Return the rates of a counter by a label."""
        found: dict[str, float] = {}
        for labels, rate in self._rates(name, where):
            value = dict(labels).get(by, "")
            found[value] = found.get(value, 0.0) + rate
        return found

    def share(self, part: str, whole: str) -> float | None:
        """Return a counter's rate as a part of another's; None where nothing happened."""
        rate = self.rate(whole)
        return self.rate(part) / rate if rate else None

    def mean(self, histogram: str, **where: str) -> float | None:
        """Return the mean of what was observed; None for nothing."""
        count = self.rate(f"{histogram}_count", **where)
        return self.rate(f"{histogram}_sum", **where) / count if count else None

    def quantile(self, share: float, histogram: str, **where: str) -> float | None:
        """Return a quantile of what was observed, as Prometheus estimates it; None for nothing."""
        buckets = self.rates(f"{histogram}_bucket", "le", **where)
        return quantile(share, {float(bound): rate for bound, rate in buckets.items()})

    def _rates(self, name: str, where: Mapping[str, str]) -> Iterator[tuple[Labels, float]]:
        for process, after in self.after.items():
            before = self.before.get(process)
            if before is None or before.problem or after.at <= before.at:
                continue
            old = before.series.get(name, {})
            for labels, value in _chosen(after, name, where):
                grown = value - old.get(labels, 0.0)
                # A counter that fell belongs to a process that was restarted: it began at 0.
                yield labels, (grown if grown >= 0 else value) / (after.at - before.at)


def quantile(share: float, cumulative: Mapping[float, float]) -> float | None:
    """Return a quantile by linear interpolation in buckets; the last bound for what is above it.

    Args:
        share: 0 to 1.
        cumulative: how many were at most as large as each bound.
    """
    bounds = sorted(cumulative)
    total = cumulative[bounds[-1]] if bounds else 0.0
    if not total:
        return None
    lower, below = 0.0, 0.0
    for bound in bounds:
        count = cumulative[bound]
        if count >= share * total:
            if math.isinf(bound):
                return lower
            inside = (share * total - below) / (count - below) if count > below else 1.0
            return lower + (bound - lower) * inside
        lower, below = bound, count
    return lower


def _chosen(scrape: Scrape, name: str, where: Mapping[str, str]) -> Iterator[tuple[Labels, float]]:
    for labels, value in scrape.series.get(name, {}).items():
        given = dict(labels)
        if all(re.fullmatch(wanted, given.get(label, "")) for label, wanted in where.items()):
            yield labels, value
