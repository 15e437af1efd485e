"""Score calibration: standard scores (z-scores) by the upper tail of each modality's scores.

Raw scores of two modalities are not comparable: embeddings of texts and of pictures lie in
different cones. So the scores of the first ten hits of queries that have nothing to do with the
collection are taken as the scale of each (query modality, candidate modality).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmesh.content import Modality

TAIL = 10
QUERIES = 128
_SMALLEST_SPREAD = 1e-3


@dataclass(frozen=True, slots=True)
class Scale:
    """Mean and standard deviation of the scores of good hits."""

    mean: float
    spread: float

    def standard(self, score: float) -> float:
        """Return how many spreads a score lies above the mean."""
        return (score - self.mean) / self.spread


@dataclass(frozen=True, slots=True)
class Calibration:
    """Scales by candidate modality, for one query modality, fitted to the state `seq`."""

    scales: Mapping[Modality, Scale]
    seq: int
    version: str

    def standard(self, modality: Modality, score: float) -> float:
        """Return a score in units that are comparable between modalities."""
        return self.scales[modality].standard(score)

    def is_outgrown(self, seq: int) -> bool:
        """Whether so much was written since that it should be fitted again."""
        return seq > 1.25 * self.seq + 100


def fit(tails: Mapping[Modality, NDArray[np.float64]], seq: int, model: str) -> Calibration | None:
    """Return the calibration for the scores of first hits, by candidate modality.

    None when no modality has any; a modality without scores gets no scale.
    """
    scales = {
        modality: Scale(float(scores.mean()), max(float(scores.std()), _SMALLEST_SPREAD))
        for modality, scores in tails.items()
        if scores.size
    }
    if not scales:
        return None
    text = "|".join(f"{m.value}:{s.mean:.6f}:{s.spread:.6f}" for m, s in scales.items())
    version = hashlib.sha256(f"{model}|{text}".encode()).hexdigest()[:12]
    return Calibration(scales, seq, version)
