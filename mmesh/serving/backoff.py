"""Exponential backoff with jitter: pauses that double, for one thing or by key."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
_MOST_DOUBLINGS = 32


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long to wait after failures in a row."""

    first_s: float = 0.5
    longest_s: float = 30.0

    def after(self, failures: int) -> float:
        """Return a pause in seconds: twice the one before, up to the longest; less up to half."""
        full_s = self.first_s * 2.0 ** min(failures - 1, _MOST_DOUBLINGS)
        return min(full_s, self.longest_s) * random.uniform(0.5, 1.0)


class Backoff(Generic[Key]):
    """Pauses by key: work that fails for one of many waits for that one alone."""

    def __init__(self, pauses: Pauses, clock: Callable[[], float] = time.monotonic) -> None:
        self._pauses, self._clock = pauses, clock
        self._failures: dict[Key, int] = {}
        self._until: dict[Key, float] = {}

    def is_due(self, key: Key) -> bool:
        """Tell whether the key may be tried: it has not failed, or its pause is over."""
        return key not in self._until or self._clock() >= self._until[key]

    def failed(self, key: Key) -> int:
        """Begin the key's next pause; return its failures in a row."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        self._until[key] = self._clock() + self._pauses.after(failures)
        return failures

    def succeeded(self, key: Key) -> None:
        """Forget the key's failures."""
        self._failures.pop(key, None)
        self._until.pop(key, None)

    def keep(self, keys: Collection[Key]) -> None:
        """Forget all keys but these, which are those that still exist."""
        for key in self._failures.keys() - set(keys):
            self.succeeded(key)
