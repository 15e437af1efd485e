"""LRU cache of calibrations, by collection and query modality: fitted when first needed.

Calls for one share one fit (single flight). A fit that failed is not begun again for a while
(backoff): searches of an index that is overloaded must not add the work of a fit each.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import numpy as np
from cachetools import LRUCache, TTLCache

from mmesh.content import Modality
from mmesh.errors import MmeshError
from mmesh.search import Consistency
from mmesh.serving.deadline import Deadline
from mmesh.tokens import Token
from mmesh.vector_search import VectorSearch
from services.gateway.interfaces import Encoder, Index
from services.gateway.search.calibration import QUERIES, TAIL, Calibration, fit
from services.gateway.search.fanout import search_shards
from services.gateway.search.ranking import Lists

logger = logging.getLogger(__name__)

FIT_S = 10.0
RETRY_S = 30.0
"""Seconds before a fit that failed, or that found nothing to go by, is begun again."""
MOST_KNOWN = 1024
"""Calibrations that are kept. Those of collections that are gone fall out some day."""
VERBATIM = 0.98
"""Score above which a query is taken to be in the collection itself."""
Key = tuple[str, str, str, Modality]
"""A collection, its epoch, the fingerprint of its model, and the modality of the queries."""


class Calibrator:
    """Fits calibrations with queries of the model's own; an outgrown one serves meanwhile."""

    def __init__(
        self, encoder: Encoder, index: Index, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._encoder, self._index = encoder, index
        self._known: LRUCache[Key, Calibration] = LRUCache(MOST_KNOWN)
        self._failed: TTLCache[Key, bool] = TTLCache(MOST_KNOWN, RETRY_S, timer)
        self._fitting: dict[Key, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """End what is being fitted."""
        fitting = list(self._fitting.values())
        for task in fitting:
            task.cancel()
        await asyncio.gather(*fitting, return_exceptions=True)

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
        if key in self._failed:
            return known
        fitting = self._fitting.get(key)
        if fitting is None:
            fitting = self._fitting[key] = asyncio.create_task(self._fit(key, token.seq))
        if known is not None:
            return known
        await asyncio.wait({fitting}, timeout=deadline.remaining())
        return self._known.get(key)

    async def _fit(self, key: Key, seq: int) -> None:
        """Fit and remember what comes of it; never fails, for nobody may be waiting."""
        calibration = None
        try:
            async with asyncio.timeout(FIT_S):
                calibration = await self._measure(key, seq)
        except (MmeshError, TimeoutError) as error:
            extra = {"collection": key[0], "error": str(error) or "it took too long"}
            logger.warning("calibration failed", extra=extra)
        except Exception:  # a defect; the task's end is read by nobody
            logger.exception("calibration failed", extra={"collection": key[0]})
        finally:
            del self._fitting[key]
        if calibration is None:
            self._failed[key] = True
        else:
            self._known[key] = calibration

    async def _measure(self, key: Key, seq: int) -> Calibration | None:
        collection, epoch, fingerprint, query_modality = key
        deadline = Deadline.after(FIT_S)
        model = await self._encoder.model(fingerprint, deadline)
        queries = model.calibration.get(query_modality)
        if queries is None:
            return None
        order = VectorSearch(
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
