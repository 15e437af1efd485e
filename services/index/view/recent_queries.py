"""The queries that were asked lately: what a new segment is tuned for.

Queries need not lie where the rows are. A text is far from the pictures that it finds, and probes
that suffice to find rows by rows miss some of what it seeks.
"""

from __future__ import annotations

import numpy as np

from mmesh.vectors import FloatMatrix

KEPT = 600
ENOUGH = 100
"""With fewer queries rows stand in for them: their recall would be known too roughly."""


class RecentQueries:
    """The last queries of a partition; of those that several threads note, some may be lost."""

    def __init__(self, dim: int) -> None:
        self._rows: FloatMatrix = np.zeros((KEPT, dim), np.float32)
        self._seen = 0

    def note(self, queries: FloatMatrix) -> None:
        """Remember queries (m, dim), unit rows."""
        for query in queries[-KEPT:]:
            self._rows[self._seen % KEPT] = query
            self._seen += 1

    def sample(self) -> FloatMatrix | None:
        """Return those that are remembered, each once, or None when they are too few."""
        known = np.unique(self._rows[: self._seen], axis=0)
        return known if len(known) >= ENOUGH else None
