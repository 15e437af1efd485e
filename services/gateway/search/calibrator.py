"""Keeps a calibration for each collection and query modality, fitted when first needed."""

from __future__ import annotations

import asyncio
import logging

import numpy as np

from mmesh.candidates import Consistency
from mmesh.content import Modality
from mmesh.errors import MmeshError
from mmesh.serving.deadline import Deadline
from mmesh.tokens import Token
from services.gateway.interfaces import Encoder, Index, ShardOrder
from services.gateway.search.calibration import QUERIES, TAIL, Calibration, fit
from services.gateway.search.fanout import search_shards
from services.gateway.search.ranking import Lists

logger = logging.getLogger(__name__)

FIT_S = 10.0
VERBATIM = 0.98
"""Score above which a query is taken to be in the collection itself."""
Key = tuple[str, str, str, Modality]
"""A collection, its epoch, the fingerprint of its model, and the modality of the queries."""


class Calibrator:
    """Fits calibrations with queries of the model's own; an outgrown one serves meanwhile."""

    def __init__(self, encoder: Encoder, index: Index) -> None:
        self._encoder, self._index = encoder, index
        self._known: dict[Key, Calibration] = {}
        self._fitting: dict[Key, asyncio.Task[Calibration | None]] = {}

    async def close(self) -> None:
        """End what is being fitted."""
        for task in self._fitting.values():
            task.cancel()
        await asyncio.gather(*self._fitting.values(), return_exceptions=True)

    async def get(
        self,
        collection: str,
        fingerprint: str,
        token: Token,
        query_modality: Modality,
        deadline: Deadline,
    ) -> Calibration | None:
        """Return the calibration; None when there is none and none can be fitted in time."""
        key = (collection, token.epoch, fingerprint, query_modality)
        known = self._known.get(key)
        if known is not None and not known.is_outgrown(token.seq):
            return known
        if key not in self._fitting:
            self._fitting[key] = asyncio.create_task(self._fit(key, token.seq))
            self._fitting[key].add_done_callback(lambda _: self._fitting.pop(key, None))
        if known is not None:
            return known
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await asyncio.shield(self._fitting[key])
        except TimeoutError:
            return None

    async def _fit(self, key: Key, seq: int) -> Calibration | None:
        collection = key[0]
        try:
            calibration = await self._measure(key, seq)
        except MmeshError as error:
            extra = {"collection": collection, "error": error.message}
            logger.warning("calibration failed", extra=extra)
            return None
        if calibration is not None:
            self._known[key] = calibration
        return calibration

    async def _measure(self, key: Key, seq: int) -> Calibration | None:
        collection, epoch, fingerprint, query_modality = key
        deadline = Deadline.after(FIT_S)
        model = await self._encoder.model(fingerprint, deadline)
        queries = model.calibration.get(query_modality)
        if queries is None:
            return None
        order = ShardOrder(
            collection, queries[:QUERIES], model.fingerprint, tuple(Modality), TAIL, None,
            Consistency.EVENTUAL, "",
        )  # fmt: skip
        found = await search_shards(self._index, order, deadline)
        if found.token.epoch != epoch:  # another collection has the name by now
            return None
        foreign = [lists for lists in found.lists if not _is_verbatim(lists)] or found.lists
        tails = {
            modality: np.array([h.retrieval_score for lists in foreign for h in lists[modality]])
            for modality in Modality
        }
        return fit(tails, seq, model.fingerprint)


def _is_verbatim(lists: Lists) -> bool:
    """Tell whether a query is itself in the collection: its scores are no scale for others."""
    return any(hit.retrieval_score > VERBATIM for hits in lists.values() for hit in hits[:1])
