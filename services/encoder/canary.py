"""The start-up canary: a model whose vectors depend on the batch, or have changed, never serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mmesh.content import Content, Role
from mmesh.errors import FailedPrecondition
from mmesh.models.parity import Encode, Reference, Row, encoder_groups, load_reference, measure
from mmesh.models.parity_cache import ParityCache, Passed, digest_of
from mmesh.models.protocol import EncoderModel, FloatMatrix, encode_together
from services.encoder import metrics
from services.encoder.config import EncoderSettings

logger = logging.getLogger(__name__)


async def check_parity(
    models: Sequence[EncoderModel],
    stored: Path | None,
    tolerance: float,
    cache: ParityCache | None = None,
) -> None:
    """Encode the built-in probes alone, together and in another order, and as they are stored.

    Nothing is encoded when `cache` knows that all of this has passed before.

    Raises:
        FailedPrecondition: vectors of a probe differ by more than `tolerance`.
    """
    known = cache.read() if cache else None
    worst = known or await _measure(models, stored)
    metrics.parity_max_abs_diff.set(worst.largest)
    found = {"max_abs_diff": worst.largest, "probe": worst.probe, "cached": known is not None}
    logger.info("parity", extra=found)
    if worst.largest > tolerance:
        raise FailedPrecondition(
            f"the vectors of the probe {worst.probe!r} differ by {worst.largest:.2g}, more than "
            f"{tolerance:g}; `mmesh encode check` shows where. Try another dtype, or allow more "
            "with --parity-tolerance"
        )
    if cache and known is None:
        cache.write(worst)


def parity_cache(settings: EncoderSettings, models: Sequence[EncoderModel]) -> ParityCache | None:
    """Return the notes on these models, opened by these settings; None where none are kept."""
    if settings.canary_cache is None or settings.trust_remote_code:
        return None
    subject = {
        "service": "encoder",
        "fingerprints": [model.info.fingerprint for model in models],
        "choices": [asdict(choice) for choice in settings.choices],
        "tolerance": settings.tolerance,
        "stored": digest_of(settings.canary),
    }
    return ParityCache(settings.canary_cache, subject)


async def _measure(models: Sequence[EncoderModel], stored: Path | None) -> Passed:
    reference = load_reference(stored) if stored else None
    rows: list[Row] = []
    for model in models:
        rows += await measure(encoder_groups(_encode(model), model.info.modalities), reference)
        reference = reference or Reference(
            "the first device", {row.name: row.answer for row in rows}
        )
    worst = max(rows, key=lambda row: row.largest)
    return Passed(worst.name, worst.largest)


def _encode(model: EncoderModel) -> Encode:
    async def encode(contents: Sequence[Content], role: Role, instruction: str) -> FloatMatrix:
        return await asyncio.to_thread(_together, model, contents, role, instruction)

    return encode


def _together(
    model: EncoderModel, contents: Sequence[Content], role: Role, instruction: str
) -> FloatMatrix:
    """Return unit rows (n, dim), with all inputs of a group in one batch, however unlike."""
    prepared = [model.prepare(content, role, instruction) for content in contents]
    rows = np.empty((len(prepared), model.info.dim), np.float32)
    for group in {one.group for one in prepared}:
        places = [place for place, one in enumerate(prepared) if one.group == group]
        rows[places] = encode_together(model, [prepared[place] for place in places])
    return rows
