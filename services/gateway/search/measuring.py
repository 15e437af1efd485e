"""What a search leaves behind for operators: metrics, and a slow-query log without content."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from mmesh.search import SearchResult
from mmesh.serving import tracing
from services.gateway import metrics
from services.gateway.search.run import Run

logger = logging.getLogger(__name__)


def measure(result: SearchResult) -> None:
    """Count an answer and its stages, of which a trace is an example where there is one."""
    exemplar = tracing.exemplar()
    for stage in result.receipt.stages:
        metrics.stage_seconds.labels(stage.name).observe(stage.seconds, exemplar)
    for hit in result.hits:
        metrics.hits_total.labels(hit.modality.value).inc()
    for reason in {one.reason for one in result.degradations}:
        metrics.degradations_total.labels(reason).inc()
    metrics.shards_asked_total.inc(result.coverage.shards_total)
    metrics.shards_answered_total.inc(result.coverage.shards_answered)


def log_slow(runs: Sequence[Run], limit_s: float) -> None:
    """Log the searches that took longer, also those that failed or were cut off; 0: none."""
    for run in runs:
        seconds = run.watch.total_s if run.result else run.watch.elapsed_s
        if limit_s and seconds > limit_s:
            metrics.slow_searches_total.inc()
            logger.warning("slow search", extra={"ms": _ms(seconds), **_described(run)})


def _described(run: Run) -> dict[str, Any]:
    """Return plan, stages and outcome: names and numbers, nothing of what is searched for."""
    search, answered = run.search, run.result is not None
    return {
        "outcome": "OK" if answered else run.error.reason if run.error else "CANCELLED",
        "collection": run.collection or search.collection,
        "query": search.query.modality.value,
        "searched": [modality.value for modality in run.plan.modalities],
        "target_source": run.plan.source,
        "limit": run.limit,
        "rerank_candidates": run.depth,
        "merge": run.merge.value,
        "has_filter": search.filter is not None,
        "stages_ms": {stage.name: _ms(stage.seconds) for stage in run.watch.stages},
        "service_ms": {
            s.name: _ms(s.service_seconds) for s in run.watch.stages if s.service_seconds
        },
        "embedding_cached": run.embedding is not None and run.embedding.cached,
        "shards": f"{run.coverage.shards_answered}/{run.coverage.shards_total}",
        "hits": len(run.result.hits) if run.result else 0,
        "rerank_outcome": run.outcome.value,
        "degradations": sorted({one.reason for one in run.degradations}),
    }


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
