"""Garbage collection of the log: old tombstones, old answers, rows of deleted collections."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Protocol, Self

from mmesh.errors import MmeshError
from mmesh.serving.supervision import Supervised
from services.index import metrics

logger = logging.getLogger(__name__)


class Purgeable(Protocol):
    """What can be purged; see `log.log.Log`."""

    def purge(self, horizon_s: float) -> int:
        """Forget deletions older than `horizon_s` seconds; return how many."""


class Purges:
    """Purges the log every so often; an async context manager."""

    def __init__(self, log: Purgeable, interval_s: float, horizon_s: float) -> None:
        self._log, self._interval_s, self._horizon_s = log, interval_s, horizon_s
        self._task = Supervised("index-purges", self._work)

    async def __aenter__(self) -> Self:
        self._task.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._task.aclose()

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s * random.uniform(0.75, 1.25))
            await self._try()
            self._task.progress()

    async def _try(self) -> None:
        try:
            gone = await asyncio.to_thread(self._log.purge, self._horizon_s)
        except Exception as error:  # drivers raise all kinds; the next time may do better
            metrics.purge_failures_total.labels(type(error).__name__).inc()
            known = isinstance(error, MmeshError)
            about = {"error": str(error)}
            logger.warning(
                "the log cannot be purged", extra=about, exc_info=None if known else error
            )
        else:
            logger.info("purged", extra={"deletions": gone})
