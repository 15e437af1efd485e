"""Patience: for how long to try again while whoever is asked does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable


class Patience:
    """A time limit that runs from the first failure after the last answer.

    So the time in which nothing was asked does not count.

    Args:
        seconds: how long failures may go on.
        timer: a monotonic clock.
    """

    def __init__(self, seconds: float, timer: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._timer = seconds, timer
        self._until: float | None = None  # None while nothing has failed

    def answered(self) -> None:
        """Take note of an answer."""
        self._until = None

    def is_over_after_failure(self, pause_s: float = 0.0) -> bool:
        """Take note of a failure; tell whether the time is over once `pause_s` have passed."""
        now = self._timer()
        if self._until is None:
            self._until = now + self._seconds
        return now + pause_s >= self._until
