"""Circuit breaker: a server that failed is asked after all others, or not, until it seems well."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from mmesh.errors import DeadlineExceeded, LogUnavailable, MmeshError, StaleReplica, Unavailable

_OF_THE_LOG = (StaleReplica, LogUnavailable)
"""Errors of a server that does what it can."""


class CircuitBreaker:
    """Whether a server is trusted: calls that fail open the circuit, a good sign closes it.

    Args:
        open_s: seconds after which an open circuit closes by itself; infinite where somebody asks
            the server meanwhile, and says `close` when it answers.
        least_s: seconds that a call must have had for its lateness to count: a server is not to
            blame for callers in a hurry.
        timer: a monotonic clock.
    """

    def __init__(
        self,
        *,
        open_s: float = math.inf,
        least_s: float,
        failures: int = 1,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_s, self._least_s, self._timer = open_s, least_s, timer
        self._failures, self._in_a_row = failures, 0
        self._error: MmeshError | None = None
        self._until = -math.inf

    @property
    def error(self) -> MmeshError | None:
        """What opened the circuit; None while it is closed."""
        return self._error if self._timer() < self._until else None

    @property
    def is_closed(self) -> bool:
        """Whether the server is trusted."""
        return self.error is None

    def admit(self) -> MmeshError | None:
        """Return None where a call may be made, else what opened the circuit.

        Once its time is over the circuit is half-open: one call tries the server. The others are
        refused until that one's answer closes the circuit, or for the same time again.
        """
        if self._error is not None and self.is_closed:
            self._until = self._timer() + self._open_s
            return None
        return self.error

    def note(self, error: MmeshError, given_s: float) -> bool:
        """Take note of a call that failed and had `given_s` seconds.

        Returns whether the failure casts doubt on the server, even where it opens nothing.
        """
        is_late = isinstance(error, DeadlineExceeded)
        is_away = isinstance(error, Unavailable) and not isinstance(error, _OF_THE_LOG)
        if is_away or (is_late and given_s >= self._least_s):
            self._in_a_row += 1
            if self._in_a_row >= self._failures:
                self.open(error)
        return is_away or is_late

    def open(self, error: MmeshError) -> None:
        """Distrust the server."""
        self._error, self._until = error, self._timer() + self._open_s

    def close(self) -> None:
        """Trust it."""
        self._error, self._until, self._in_a_row = None, -math.inf, 0
