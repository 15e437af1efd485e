"""Gauges of what the shard holds and how fresh it is, set once a second."""

from __future__ import annotations

import asyncio
from typing import Self

from mmesh.serving.supervision import Supervised
from services.index import metrics
from services.index.description import describe
from services.index.view.follower import Follower
from services.index.view.view import View

LOOK_S = 1.0


class Gauges:
    """Exports the state of a follower's views; an async context manager."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._known: set[str] = set()
        """Collections whose gauges are exported."""
        self._task = Supervised("index-gauges", self._work)

    async def __aenter__(self) -> Self:
        self._task.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._task.aclose()

    async def _work(self) -> None:
        while True:
            self.export()
            self._task.progress()
            await asyncio.sleep(LOOK_S)

    def export(self) -> None:
        """Set all gauges, and stop exporting those of collections that are gone."""
        for part, size in describe(self._follower).memory.items():
            metrics.memory_bytes.labels(part).set(size)
        metrics.memory_bytes.labels("limit").set(self._follower.budget.limit)
        metrics.refused_collections.set(len(self._follower.refused))
        lags = self._follower.lags()
        for name in self._known - lags.keys():
            metrics.forget_collection(name)
        self._known = set(lags)
        for name, lag in lags.items():
            metrics.lag.labels(name).set(lag.writes)
            metrics.staleness_seconds.labels(name).set(lag.seconds)
        for view in self._follower.views.values():
            _export_view(view)


def _export_view(view: View) -> None:
    segments = 0
    for modality, partition in view.partitions.items():
        metrics.candidates.labels(view.name, modality.value).set(partition.living)
        segments += len(partition.segments)
        if partition.segments:
            largest = max(partition.segments, key=len)
            metrics.segment_recall.labels(view.name, modality.value).set(largest.recall)
    metrics.segments.labels(view.name).set(segments)
