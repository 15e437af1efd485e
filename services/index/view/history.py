"""The commits that a view has passed lately: answers which writes it reflects, without the log."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from cachetools import LRUCache

from services.index.point import Point

KEPT = 4096
"""Commits that are remembered of a view, about 400 KB at most."""
KEPT_CHECKED = 256
"""Points that the log was asked about and that are remembered."""


class History:
    """What is known of the history of one view; for one thread."""

    def __init__(self) -> None:
        self._seqs: list[int] = []
        self._stamps: list[str] = []
        self._checked: LRUCache[Point, bool] = LRUCache(KEPT_CHECKED)

    def passed(self, commits: Sequence[Point]) -> None:
        """Take note of commits that follow those known, in order and without a gap.

        More than `KEPT` in one go have a gap before them.
        """
        if len(commits) >= KEPT:
            self._seqs, self._stamps = [], []
        for seq, stamp in commits:
            if self._seqs and seq <= self._seqs[-1]:
                continue  # that which made the last row of a page, and the first of the next one
            self._seqs.append(seq)
            self._stamps.append(stamp)
        del self._seqs[:-KEPT], self._stamps[:-KEPT]

    def checked(self, point: Point) -> None:
        """Take note that the log, of which the view is, has a point."""
        self._checked[point] = True

    def has(self, point: Point) -> bool:
        """Tell whether the view is known to reflect a write; it may do so without knowing."""
        if point in self._checked:
            return True
        place = bisect_left(self._seqs, point.seq)
        if not self._seqs or point.seq < self._seqs[0] or place == len(self._seqs):
            return False
        return self._stamps[place] == point.stamp
