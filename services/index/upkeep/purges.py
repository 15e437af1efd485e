"""Garbage collection of the log: old tombstones, old answers, rows of deleted collections."""

from __future__ import annotations

import logging
from typing import Protocol

from services.index import metrics
from services.index.upkeep.periodic import Periodic

logger = logging.getLogger(__name__)


class Purgeable(Protocol):
    """What can be purged; see `log.log.Log`."""

    def purge(self, horizon_s: float) -> int:
        """Forget deletions older than `horizon_s` seconds; return how many."""


def purges(log: Purgeable, interval_s: float, horizon_s: float) -> Periodic:
    """Return the task that purges the log every `interval_s` seconds, about."""

    def purge() -> None:
        gone = log.purge(horizon_s)
        logger.info("purged", extra={"deletions": gone})

    pause_s = (0.75 * interval_s, 1.25 * interval_s)
    failures = metrics.purge_failures_total
    return Periodic("index-purges", purge, pause_s, failures, "the log cannot be purged")
