"""Supervision of background tasks: restart with exponential backoff, and health.

A task whose end nobody reads dies in silence. Here its end is counted, logged and followed by
another start; while a task fails again and again `Host` says NOT_SERVING.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mmesh.serving import telemetry
from mmesh.serving.backoff import Pauses

logger = logging.getLogger(__name__)

PAUSES = Pauses(first_s=0.5, longest_s=30.0)
_running: set[Supervised] = set()


def unwell() -> list[str]:
    """Return the names of this process' tasks that fail again and again."""
    return sorted(task.name for task in _running if not task.is_well)


class Returned(Exception):
    """A task that should run for ever has returned."""


class Supervised:
    """A task that runs until `aclose`: whatever ends its work, the work begins again.

    Failures in a row end with a call of `progress`, or with a run as long as the longest pause.
    What is expected to fail, such as work on one collection of many, is better caught by the work
    itself (see `Backoff`): health is about tasks that cannot go on.

    Args:
        name: for metrics and logs; several tasks may share one.
        work: begins the work, which should never end.
        unwell_after: failures in a row from which on the process says NOT_SERVING.
        backoff: pauses between the end of the work and its next start.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Awaitable[None]],
        *,
        unwell_after: int = 5,
        backoff: Pauses = PAUSES,
    ) -> None:
        self.name = name
        self.failures = 0
        """Failures in a row."""
        self._work, self._unwell_after, self._backoff = work, unwell_after, backoff
        self._task: asyncio.Task[None] | None = None
        self.may_return = False
        """Whether the work shall come to its end: then its return is no failure."""
        self._logged: set[type[BaseException]] = set()
        self._gauge = telemetry.task_unwell.labels(name)

    @property
    def is_well(self) -> bool:
        """Whether it has failed fewer times in a row than make it unwell."""
        return self.failures < self._unwell_after

    def start(self) -> None:
        """Begin the work."""
        self._task = asyncio.create_task(self._keep_running(), name=self.name)
        _running.add(self)

    async def finish(self) -> None:
        """Wait until the work returns, as it `may_return` now; it begins again only if it fails."""
        try:
            if self._task is not None:
                await asyncio.wait([self._task])
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Cancel the work and wait for its end."""
        _running.discard(self)
        self._set_failures(0)
        if self._task is not None:
            self._task.cancel()
            [end] = await asyncio.gather(self._task, return_exceptions=True)
            if isinstance(end, Exception) and not isinstance(end, Returned):
                logger.warning("task ended badly", extra={"task": self.name}, exc_info=end)

    def progress(self) -> None:
        """Take note that a whole round of the work went well: what failed before is over."""
        if self.failures:
            about = {"task": self.name, "failures": self.failures}
            logger.info("task has recovered", extra=about)
            self._logged.clear()
            self._set_failures(0)

    async def _keep_running(self) -> None:
        own = asyncio.current_task()
        assert own is not None
        while not own.cancelling():
            try:
                await self._run_once()
            except (KeyboardInterrupt, SystemExit, GeneratorExit):
                raise
            except BaseException as error:  # a library's own kinds, too
                if own.cancelling():
                    raise
                if self.may_return and isinstance(error, Returned):
                    return
                self._fail(error)  # also when what the work waited for was cancelled
                await asyncio.sleep(self._backoff.after(self.failures))

    async def _run_once(self) -> None:
        well = asyncio.get_running_loop().call_later(self._backoff.longest_s, self.progress)
        try:
            await self._work()
        finally:
            well.cancel()
        raise Returned(f"{self.name} came to an end")

    def _fail(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]  # what a task group wraps
        telemetry.task_failures_total.labels(self.name, type(error).__name__).inc()
        self._set_failures(self.failures + 1)
        about = {"task": self.name, "failures": self.failures}
        if type(error) not in self._logged:
            self._logged.add(type(error))
            logger.error("task failed; it starts again", extra=about, exc_info=error)
        if self.failures == self._unwell_after:
            logger.error("task is unwell", extra=about)

    def _set_failures(self, failures: int) -> None:
        was_well, self.failures = self.is_well, failures
        self._gauge.inc(was_well - self.is_well)
