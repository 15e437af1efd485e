"""LRU cache of calibrations, by model and query modality: fitted when first needed."""

from __future__ import annotations

from cachetools import LRUCache

from mmesh.content import Modality
from mmesh.errors import MmeshError
from mmesh.serving.deadline import Deadline
from services.gateway.interfaces import Encoder
from services.gateway.search.calibration import Calibration, fit

MOST_KNOWN = 64
"""Calibrations that are kept. Those of models that are gone fall out some day."""
Key = tuple[str, Modality, frozenset[Modality]]
"""The fingerprint of a model, the modality of the queries, and those of the reference pool: more
are known once another encoder of the model is found."""


class Calibrator:
    """Fits calibrations to the reference pools of models."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._known: LRUCache[Key, Calibration | None] = LRUCache(MOST_KNOWN)

    async def get(
        self, fingerprint: str, query: Modality, deadline: Deadline
    ) -> Calibration | None:
        """Return the calibration of a model; None where there is none, or none is had in time."""
        try:
            model = await self._encoder.model(fingerprint, deadline)
        except MmeshError:
            return None
        key = (fingerprint, query, frozenset(model.reference))
        if key not in self._known:
            self._known[key] = fit(model.reference, query, fingerprint)
        return self._known[key]
