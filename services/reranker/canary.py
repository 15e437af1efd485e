"""The start-up canary: a judge whose scores depend on the batch, or have changed, never serves."""

from __future__ import annotations

import logging
from pathlib import Path

from mmesh.errors import FailedPrecondition
from mmesh.models.parity import judge_groups, largest, load_reference, measure
from mmesh.models.protocol import JudgeModel
from services.reranker import metrics

logger = logging.getLogger(__name__)


async def check_parity(judge: JudgeModel, stored: Path | None, tolerance: float) -> None:
    """Score the built-in probes alone, together and in another order, and as they are stored.

    Raises:
        FailedPrecondition: a probe's scores differ by more than `tolerance`.
    """
    reference = load_reference(stored) if stored else None
    rows = await measure(judge_groups(judge.score), reference)
    worst = max(rows, key=lambda row: row.largest)
    metrics.parity_max_abs_diff.set(largest(rows))
    logger.info("parity", extra={"max_abs_diff": worst.largest, "probe": worst.name})
    if worst.largest > tolerance:
        raise FailedPrecondition(
            f"the scores of the probe {worst.name!r} differ by {worst.largest:.2g}, more than "
            f"{tolerance:g}; `mmesh rerank check` shows where. Try another dtype or version of "
            "vLLM, or allow more with --parity-tolerance"
        )
