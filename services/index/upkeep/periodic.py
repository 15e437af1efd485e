"""A periodic task: work on a thread every so often, with jitter, whatever became of it before."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Self

from prometheus_client import Counter

from mmesh.errors import DataLoss, MmeshError
from mmesh.serving.supervision import Supervised
from services.index import metrics

logger = logging.getLogger(__name__)


class Periodic:
    """Does some work again and again; an async context manager.

    A failure is counted, by the kind of its error, and logged: drivers and stores raise all kinds,
    and the next time may do better.

    Args:
        name: of the task, for metrics and logs.
        work: done on a thread.
        pause_s: least and most seconds before each time; with 0 it does nothing.
        failures: counts failures by kind of error.
        problem: what the log says of one.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], None],
        pause_s: tuple[float, float],
        failures: Counter,
        problem: str,
    ) -> None:
        self._work, self._pause_s = work, pause_s
        self._failures, self._problem = failures, problem
        self._task = Supervised(name, self._repeat)

    async def __aenter__(self) -> Self:
        if self._pause_s[1]:
            self._task.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._task.aclose()

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(random.uniform(*self._pause_s))
            await self._try()
            self._task.progress()

    async def _try(self) -> None:
        try:
            await asyncio.to_thread(self._work)
        except Exception as error:  # see above
            self._failures.labels(type(error).__name__).inc()
            if isinstance(error, DataLoss):
                metrics.damaged_total.labels("log").inc()
            known = isinstance(error, MmeshError)
            about = {"error": str(error)}
            logger.warning(self._problem, extra=about, exc_info=None if known else error)
