"""Gauges of collections under a bounded number of names: labels are series, and those cost memory.

The first collections have names of their own; the others are told together, as `OTHERS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mmesh.content import Modality
from services.index import metrics
from services.index.view.follower import Lag
from services.index.view.view import View

OTHERS = "(others)"
"""No collection can be called so."""


class NamedCollections:
    """Which collections metrics name: the first ones, for as long as they are there."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._named: set[str] = set()

    def keep(self, present: Iterable[str]) -> None:
        """Forget those that are gone, and name others in their place, by the alphabet."""
        present = set(present)
        self._named &= present
        free = self._most - len(self._named)
        self._named |= set(sorted(present - self._named)[:free])

    def label(self, name: str) -> str:
        """Return what metrics call a collection."""
        return name if name in self._named else OTHERS


@dataclass(slots=True)
class CollectionGauges:
    """What is exported under one name: of several collections sums, and the worst of the rest."""

    writes: int = 0
    behind_s: float = 0.0
    snapshot_age_s: float = 0.0
    segments: int = 0
    candidates: dict[Modality, int] = field(default_factory=dict)
    recall: dict[Modality, float] = field(default_factory=dict)

    def add_lag(self, lag: Lag) -> None:
        """Take what a collection lags behind the log."""
        self.writes += lag.writes
        self.behind_s = max(self.behind_s, lag.seconds)

    def add_view(self, view: View, snapshot_age_s: float) -> None:
        """Take what a view holds."""
        self.snapshot_age_s = max(self.snapshot_age_s, snapshot_age_s)
        for modality, partition in view.partitions.items():
            self.candidates[modality] = self.candidates.get(modality, 0) + partition.living
            self.segments += len(partition.segments)
            if partition.segments:
                largest = max(partition.segments, key=len)
                self.recall[modality] = min(self.recall.get(modality, 1.0), largest.recall)

    def export(self, label: str, before: CollectionGauges | None = None) -> None:
        """Set the gauges of a name, and end those that it had `before` and has no more."""
        metrics.lag.labels(label).set(self.writes)
        metrics.staleness_seconds.labels(label).set(self.behind_s)
        metrics.snapshot_age_seconds.labels(label).set(self.snapshot_age_s)
        metrics.segments.labels(label).set(self.segments)
        for modality, living in self.candidates.items():
            metrics.candidates.labels(label, modality.value).set(living)
        for modality, recall in self.recall.items():
            metrics.segment_recall.labels(label, modality.value).set(recall)
        if before is not None:
            for modality in before.candidates.keys() - self.candidates.keys():
                metrics.candidates.remove(label, modality.value)
            for modality in before.recall.keys() - self.recall.keys():
                metrics.segment_recall.remove(label, modality.value)
