"""Score calibration: what a good score is, by the modality of query and candidate.

Raw scores of two modalities are not comparable: embeddings of texts and of pictures lie in
different cones, the modality gap (Liang et al., Mind the Gap, NeurIPS 2022, arXiv 2203.02053). How
far apart is a matter of the model. So it is measured on the model's reference pool, which holds the
same things in every modality: whatever a query seeks there, each modality has as good an answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmesh.content import Modality
from mmesh.vectors import FloatMatrix
from services.gateway.interfaces import ReferenceRows

_SMALLEST_SPREAD = 1e-3
LEAST_THINGS = 8
"""Things that a reference pool must have to tell anything."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is usual for a good hit of each modality, for queries of one modality."""

    usual: Mapping[Modality, float]
    """The mean score of the best hit."""
    spread: float
    """The standard deviation of that score, the same for all modalities (pooled)."""
    version: str

    def covers(self, modalities: Iterable[Modality]) -> bool:
        """Tell whether it knows what is usual for each of these."""
        return self.usual.keys() >= set(modalities)

    def standard(self, modality: Modality, score: float) -> float:
        """Return how many spreads a score lies above what is usual, the same in all modalities."""
        return (score - self.usual[modality]) / self.spread


def fit(
    reference: Mapping[Modality, ReferenceRows], query: Modality, model: str
) -> Calibration | None:
    """Return the calibration for queries of one modality over the reference pool of a model.

    A query's best hit is that among the other things: a model has often been trained on the very
    pairs. All modalities are measured on the things that each has. None where these are too few.
    """
    count = min((len(rows.queries) for rows in reference.values()), default=0)
    if count < LEAST_THINGS or query not in reference:
        return None
    queries = reference[query].queries[:count]
    best = {kind: _best(queries, rows.candidates[:count]) for kind, rows in reference.items()}
    usual = {kind: float(scores.mean()) for kind, scores in best.items()}
    pooled = float(np.sqrt(np.mean([scores.var() for scores in best.values()])))
    spread = max(pooled, _SMALLEST_SPREAD)
    text = "|".join([*(f"{kind.value}:{usual[kind]:.6f}" for kind in usual), f"{spread:.6f}"])
    version = hashlib.sha256(f"{model}|{text}".encode()).hexdigest()[:12]
    return Calibration(usual, spread, version)


def _best(queries: FloatMatrix, candidates: FloatMatrix) -> NDArray[np.float64]:
    """Return each query's highest score (n,) among the candidates but that of its own row."""
    scores = (queries @ candidates.T).astype(np.float64)
    np.fill_diagonal(scores, -np.inf)
    best: NDArray[np.float64] = scores.max(axis=1)
    return best
