"""Gauges of what the shard holds and how fresh it is, set once a second."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from mmesh.serving.supervision import Supervised
from services.index import metrics
from services.index.description import describe
from services.index.upkeep.collection_gauges import CollectionGauges, NamedCollections
from services.index.view.follower import Follower
from services.index.view.view import View

LOOK_S = 1.0
MOST_NAMED = 100


class Gauges:
    """Exports the state of a follower's views and of disks; an async context manager.

    Args:
        follower: has the views.
        folders: what is on disks of this machine, by what it is for.
        limits: bytes that they may hold, below what their disks have; 0 for none.
        snapshot_age: returns how many seconds a view waits for a snapshot.
        most_named: collections that have names of their own.
    """

    def __init__(
        self,
        follower: Follower,
        *,
        folders: Mapping[str, Path] | None = None,
        limits: Mapping[str, int] | None = None,
        snapshot_age: Callable[[View], float] = lambda _: 0.0,
        most_named: int = MOST_NAMED,
    ) -> None:
        self._follower = follower
        self._folders, self._limits = folders or {}, limits or {}
        self._snapshot_age = snapshot_age
        self._names = NamedCollections(most_named)
        self._known: dict[str, CollectionGauges] = {}
        """What is exported of collections, by name."""
        self._parts: set[str] = set()
        """Parts of memory that are exported."""
        self._refusals = {"MEMORY_FULL", "CORRUPT_DATA"}
        """Reasons for which collections were refused so far, or may be."""
        self._task = Supervised("index-gauges", self._work)

    async def __aenter__(self) -> Self:
        self._task.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._task.aclose()

    def label(self, name: str) -> str:
        """Return what metrics call a collection."""
        return self._names.label(name)

    async def _work(self) -> None:
        while True:
            self.export()
            # In a thread: one in a network may be slow.
            await asyncio.to_thread(_export_disks, self._folders, self._limits)
            self._task.progress()
            await asyncio.sleep(LOOK_S)

    def export(self) -> None:
        """Set all gauges, and stop exporting those of collections that are gone."""
        self._export_memory()
        self._export_refused()
        found = self._by_name()
        for label in self._known.keys() - found.keys():
            metrics.forget_collection(label)
        for label, gauges in found.items():
            gauges.export(label, self._known.get(label))
        self._known = found

    def _export_memory(self) -> None:
        """Tell what each part takes, that of which there is none any more too."""
        memory = describe(self._follower).memory
        self._parts |= memory.keys()
        for part in self._parts:
            metrics.memory_bytes.labels(part).set(memory.get(part, 0))
        metrics.memory_bytes.labels("limit").set(self._follower.budget.limit)

    def _export_refused(self) -> None:
        counts = Counter(error.reason for error in self._follower.refused.values())
        self._refusals |= counts.keys()
        for reason in self._refusals:
            metrics.refused_collections.labels(reason).set(counts[reason])

    def _by_name(self) -> dict[str, CollectionGauges]:
        """Return what there is to export of collections, by what metrics call them."""
        lags, views = self._follower.lags(), list(self._follower.views.values())
        self._names.keep([*lags, *(view.name for view in views)])
        found: dict[str, CollectionGauges] = {}
        for name, lag in lags.items():
            found.setdefault(self._names.label(name), CollectionGauges()).add_lag(lag)
        for view in views:
            gauges = found.setdefault(self._names.label(view.name), CollectionGauges())
            gauges.add_view(view, self._snapshot_age(view))
        return found


def _export_disks(folders: Mapping[str, Path], limits: Mapping[str, int]) -> None:
    for purpose, folder in folders.items():
        with suppress(OSError):  # not made yet, or away: the last numbers stay
            usage = shutil.disk_usage(folder)
            size, free = usage.total, usage.free
            if limit := limits.get(purpose, 0):
                size, free = min(size, limit), min(free, max(0, limit - _bytes_below(folder)))
            metrics.disk_free_bytes.labels(purpose).set(free)
            metrics.disk_size_bytes.labels(purpose).set(size)


def _bytes_below(folder: Path) -> int:
    """Return what the files of a folder take on its disk; some may go meanwhile."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
    return total
