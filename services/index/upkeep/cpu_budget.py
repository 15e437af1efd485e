"""Token bucket of CPU time: background work takes a share of what its process uses, no more."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_S = 0.02
"""What the bucket holds before it is known what a piece of work takes."""


class CpuBudget:
    """A token bucket that fills with a share of the CPU seconds that the process uses.

    A piece of work may begin when the bucket is full, and the bucket holds as much as the dearest
    piece so far has taken. So the work takes at most that share, and is at most one piece ahead of
    it; and since all pieces wait for the same, dear ones have their turns beside cheap ones.

    Args:
        share: of the CPU seconds, 0 to 1.
        used_s: returns the CPU seconds that the process has used, all threads together.
    """

    def __init__(self, share: float, used_s: Callable[[], float] = time.process_time) -> None:
        self._share, self._used_s = share, used_s
        self._seen_s = 0.0
        self._size_s, self._saved_s = FIRST_S, 0.0

    @property
    def is_full(self) -> bool:
        """Whether the next piece of work may begin."""
        used_s = self._used_s()
        self._saved_s += self._share * (used_s - self._seen_s)
        self._seen_s = used_s
        self._saved_s = min(self._saved_s, self._size_s)
        return self._saved_s >= self._size_s

    def spend(self, cpu_s: float) -> None:
        """Take out what a piece of work took; what was not there is owed."""
        self._saved_s -= cpu_s
        self._size_s = max(self._size_s, cpu_s)
