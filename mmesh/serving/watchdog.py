"""Event loop watchdog: how long the loop stands still, and in debug runs where.

All calls of a process share one event loop. While one of them computes on it, the others and the
health checks wait; so no legal request may hold it longer than 50 ms.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field

from mmesh.serving import telemetry

logger = logging.getLogger(__name__)

INTERVAL_S, DEBUG_INTERVAL_S = 0.1, 0.02


@dataclass
class LoopWatchdog:
    """Measures how late a timer of the loop is; `run` never ends.

    With a limit, it logs an error with the stack of whatever computed for longer in one turn of the
    loop. The limit is CPU time, so that a machine which is busy elsewhere reports nothing.
    """

    limit_s: float = 0.0
    """0 means none: the lateness is measured only."""
    blocked: list[float] = field(default_factory=list)
    """CPU seconds of the turns that took longer than the limit."""
    _due: float = field(default=float("inf"), init=False)
    _stack: str = field(default="", init=False)

    async def run(self) -> None:
        """Measure for ever."""
        if not self.limit_s:
            while True:
                await self._turn(INTERVAL_S)
        over = threading.Event()
        sampler = threading.Thread(
            target=self._sample, args=(threading.get_ident(), over), daemon=True, name="watchdog"
        )
        sampler.start()
        try:
            while True:
                self._judge(await self._turn(DEBUG_INTERVAL_S))
        finally:
            over.set()

    async def _turn(self, interval_s: float) -> float:
        """Wait for a timer and return the CPU seconds for which the loop held it up."""
        self._due, before = time.monotonic() + interval_s, time.thread_time()
        await asyncio.sleep(interval_s)
        late = max(0.0, time.monotonic() - self._due)
        telemetry.loop_blocked.observe(late)
        return min(late, time.thread_time() - before)

    def _judge(self, held_s: float) -> None:
        if held_s > self.limit_s:
            self.blocked.append(held_s)
            where = self._stack or "it was over before it could be seen"
            logger.error("event loop blocked", extra={"cpu_seconds": held_s, "where": where})
        self._stack = ""

    def _sample(self, thread: int, over: threading.Event) -> None:
        """Keep the stack of the loop's thread as it is when a timer is late."""
        while not over.wait(self.limit_s / 4):
            if not self._stack and time.monotonic() > self._due + self.limit_s / 2:
                frame = sys._current_frames().get(thread)
                self._stack = "".join(traceback.format_stack(frame, 12))
