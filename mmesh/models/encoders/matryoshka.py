"""Shorter vectors of models that were trained for it (Matryoshka, arXiv 2205.13147)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mmesh.errors import FailedPrecondition
from mmesh.models.protocol import EncoderModel, FloatMatrix
from mmesh.models.wrapped import Wrapped


class Truncated(Wrapped):
    """The first `dim` numbers of each vector of `model`, at unit length again.

    The model's fingerprint gets a suffix: vectors of two widths belong to two spaces.

    Raises:
        FailedPrecondition: the model's vectors are shorter than `dim`.
    """

    def __init__(self, model: EncoderModel, dim: int) -> None:
        whole = model.info
        if not 1 <= dim <= whole.dim:
            raise FailedPrecondition(f"{whole.name} has {whole.dim} dimensions, not {dim}")
        calibration, candidates = (
            {kind: _cut(rows, dim) for kind, rows in each.items()}
            for each in (whole.calibration, whole.calibration_candidates)
        )
        fingerprint = f"{whole.fingerprint}-dim{dim}"
        super().__init__(
            model,
            replace(
                whole,
                dim=dim,
                fingerprint=fingerprint,
                calibration=calibration,
                calibration_candidates=candidates,
            ),
        )

    def forward(self, collated: Any) -> FloatMatrix:
        """Return the shortened unit rows (n, dim)."""
        return _cut(super().forward(collated), self.info.dim)


def _cut(rows: FloatMatrix, dim: int) -> FloatMatrix:
    kept = rows[:, :dim]
    cut: FloatMatrix = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    return cut
