"""How much judging a call may cost, and how it is spent: most promising first, in rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmesh.serving.deadline import Deadline

CAUTION = 0.5
"""Share of the time left that a round may be expected to take."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one call; 0 means none. Scores that are remembered cost nothing."""

    candidates: int = 0
    seconds: float = 0.0
    image_tokens: int = 0
    """Of the query, which is read once, and of the candidates."""

    def deadline(self, latest: Deadline) -> Deadline:
        """Return when to stop: at `latest`, or when the seconds are over."""
        if not self.seconds:
            return latest
        return Deadline.after(min(self.seconds, latest.remaining()))

    def affordable(self, query_tokens: int, candidate_tokens: Sequence[int]) -> Iterator[bool]:
        """Tell for each candidate, by the image tokens of all, whether it is to be judged.

        One that costs more than is left is passed over, and the next one looked at. When the query
        alone costs too much, nothing is judged.
        """
        left = self.image_tokens - query_tokens
        chosen = 0
        for tokens in candidate_tokens:
            counted = not self.candidates or chosen < self.candidates
            paid = not self.image_tokens or (left >= 0 and tokens <= left)
            if counted and paid:
                chosen += 1
                left -= tokens
            yield counted and paid


class PairRate:
    """Chooses the sizes of rounds: doubling while there is plenty of time, smaller near the end."""

    def __init__(self, first: int) -> None:
        self._size = first
        self._each_s = 0.0

    def next_size(self, remaining_s: float) -> int:
        """Return how many candidates to judge now; 0 when there is no time for another."""
        if remaining_s <= self._each_s:
            return 0
        if not self._each_s:
            return self._size
        return max(1, min(self._size, int(CAUTION * remaining_s / self._each_s)))

    def note(self, size: int, seconds: float) -> None:
        """Learn from a round; the slowest one counts."""
        self._each_s = max(self._each_s, seconds / size)
        self._size *= 2
