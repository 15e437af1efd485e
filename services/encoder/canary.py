"""The start-up canary: a model whose vectors depend on the batch, or have changed, never serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmesh.content import Content, Role
from mmesh.errors import FailedPrecondition
from mmesh.models.parity import Encode, Reference, Row, encoder_groups, load_reference, measure
from mmesh.models.protocol import EncoderModel, FloatMatrix, encode_together
from services.encoder import metrics

logger = logging.getLogger(__name__)


async def check_parity(
    models: Sequence[EncoderModel], stored: Path | None, tolerance: float
) -> None:
    """Encode the built-in probes alone, together and in another order, and as they are stored.

    Raises:
        FailedPrecondition: vectors of a probe differ by more than `tolerance`.
    """
    reference = load_reference(stored) if stored else None
    rows: list[Row] = []
    for model in models:
        rows += await measure(encoder_groups(_encode(model), model.info.modalities), reference)
        reference = reference or Reference(
            "the first device", {row.name: row.answer for row in rows}
        )
    worst = max(rows, key=lambda row: row.largest)
    metrics.parity_max_abs_diff.set(worst.largest)
    logger.info("parity", extra={"max_abs_diff": worst.largest, "probe": worst.name})
    if worst.largest > tolerance:
        raise FailedPrecondition(
            f"the vectors of the probe {worst.name!r} differ by {worst.largest:.2g}, more than "
            f"{tolerance:g}; `mmesh encode check` shows where. Try another dtype, or allow more "
            "with --parity-tolerance"
        )


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
