"""Garbage collection of the store: pictures that no candidate has, snapshots of what is gone."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Protocol

from services.index import metrics
from services.index.log.rows import CollectionRow
from services.index.store.garbage import Garbage, Swept
from services.index.store.snapshot import Snapshots
from services.index.upkeep.periodic import Periodic

logger = logging.getLogger(__name__)


class Naming(Protocol):
    """What names pictures and snapshots; see `log.log.Log`."""

    def pictures(self) -> Iterator[str]:
        """Yield the names of all pictures."""

    def collections(self) -> list[CollectionRow]:
        """Return all collections."""

    def identity(self) -> str:
        """Return what names the log."""


def sweeps(log: Naming, snapshots: Snapshots, garbage: Garbage, interval_s: float) -> Periodic:
    """Return the task that sweeps the store, in turn with other processes; with 0 it never does."""

    def sweep() -> None:
        if garbage.take_turn(interval_s):
            garbage.claim(log.identity())
            drop_orphans(log, snapshots, garbage.grace_s)
            export(garbage.sweep(log.pictures))

    pause_s = (0.1 * interval_s, 0.4 * interval_s)
    failures = metrics.gc_failures_total
    return Periodic("index-sweeps", sweep, pause_s, failures, "the store cannot be swept")


def drop_orphans(log: Naming, snapshots: Snapshots, grace_s: float) -> None:
    """Remove snapshots whose collections are gone, and those of shard sets that are.

    A process may have been killed before it did, and nobody scales a shard set down to nothing who
    could remove its snapshots.
    """
    for epoch in snapshots.epochs(grace_s) - {row.epoch for row in log.collections()}:
        snapshots.drop(epoch)
    snapshots.drop_retired(grace_s)


def export(swept: Swept) -> None:
    """Show in metrics and log what a sweep has done."""
    metrics.store_bytes.labels("named").set(swept.named.size)
    metrics.store_bytes.labels("waiting").set(swept.waiting.size)
    metrics.store_sweep_time_seconds.set(time.time())
    metrics.store_removed_bytes_total.inc(swept.removed.size)
    about = {
        "named": swept.named.objects,
        "waiting": swept.waiting.objects,
        "removed": swept.removed.objects,
    }
    logger.info("store swept", extra=about)
