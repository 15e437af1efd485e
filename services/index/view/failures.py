"""Failures of following the log, counted and logged by whose matter they are."""

from __future__ import annotations

import logging

from mmesh.errors import DataLoss, InternalError, MmeshError
from services.index import metrics

logger = logging.getLogger(__name__)


def note_failed_look(error: Exception, collection: str = "") -> None:
    """Count a look at the log that failed: a matter of all collections, whichever was read."""
    metrics.tail_failures_total.labels(type(error).__name__).inc()
    _note_damage(error)
    about = {"error": str(error), "collection": collection}
    logger.warning("the log cannot be followed", extra=about)


def note_refusal(error: Exception, collection: str, before: MmeshError | None) -> MmeshError:
    """Count that a collection cannot be followed; return what searches of it shall hear.

    It is logged unless `before`, what they heard so far, was of the same kind.
    """
    metrics.collection_failures_total.labels(type(error).__name__).inc()
    _note_damage(error)
    told, trace = error, None
    if not isinstance(told, MmeshError):
        told = InternalError(f"collection {collection!r} cannot be followed; see the logs")
        trace = error
    if type(before) is not type(told):
        about = {"collection": collection, "why": str(error)}
        logger.error("collection refused", extra=about, exc_info=trace)
    return told


def _note_damage(error: Exception) -> None:
    if isinstance(error, DataLoss):
        metrics.damaged_total.labels("log").inc()
