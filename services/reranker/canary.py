"""The start-up canary: a judge whose scores depend on the batch, or have changed, never serves."""

from __future__ import annotations

import logging
from pathlib import Path

from mmesh.errors import FailedPrecondition
from mmesh.models.parity import judge_groups, load_reference, measure
from mmesh.models.parity_cache import ParityCache, Passed, digest_of
from mmesh.models.protocol import JudgeModel
from services.reranker import metrics
from services.reranker.config import RerankerSettings

logger = logging.getLogger(__name__)

MAXSIM = "maxsim"


async def check_parity(
    judge: JudgeModel, stored: Path | None, tolerance: float, cache: ParityCache | None = None
) -> None:
    """Score the built-in probes alone, together and in another order, and as they are stored.

    Nothing is scored when `cache` knows that all of this has passed before.

    Raises:
        FailedPrecondition: a probe's scores differ by more than `tolerance`.
    """
    known = cache.read() if cache else None
    worst = known or await _measure(judge, stored)
    metrics.parity_max_abs_diff.set(worst.largest)
    found = {"max_abs_diff": worst.largest, "probe": worst.probe, "cached": known is not None}
    logger.info("parity", extra=found)
    if worst.largest > tolerance:
        raise FailedPrecondition(
            f"the scores of the probe {worst.probe!r} differ by {worst.largest:.2g}, more than "
            f"{tolerance:g}; `mmesh rerank check` shows where. Try another dtype or version of "
            "vLLM, or allow more with --parity-tolerance"
        )
    if cache and known is None:
        cache.write(worst)


def parity_cache(settings: RerankerSettings, judge: JudgeModel) -> ParityCache | None:
    """Return the notes on maxsim; None where none are kept, and for judges elsewhere.

    What another server runs may change unseen, and vLLM chooses kernels as it starts.
    """
    if settings.canary_cache is None or settings.model != MAXSIM:
        return None
    subject = {
        "service": "reranker",
        "fingerprint": judge.info.fingerprint,
        "threads": settings.threads,
        "tolerance": settings.tolerance,
        "stored": digest_of(settings.canary),
    }
    return ParityCache(settings.canary_cache, subject)


async def _measure(judge: JudgeModel, stored: Path | None) -> Passed:
    reference = load_reference(stored) if stored else None
    rows = await measure(judge_groups(judge.score), reference)
    worst = max(rows, key=lambda row: row.largest)
    return Passed(worst.name, worst.largest)
