"""A search done again exactly, piece by piece, over what it saw: a flat scan of stored vectors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.index.segments import bitmap, exact
from services.index.segments.ids import hashes_of
from services.index.view.view import find_in
from services.index.view.watch import Seen, SeenBlock, Watch

PIECE_NUMBERS = 1 << 28
"""Numbers of vectors in a piece: 20 ms of a core where FAISS scans them."""


class Agreement(NamedTuple):
    """How many of the nearest candidates a search found."""

    found: int
    wanted: int


class ExactPass:
    """Goes through all that a watched search could have found, on any one thread at a time."""

    def __init__(
        self, watch: Watch, seen: Seen, most: int, *, piece_numbers: int = PIECE_NUMBERS
    ) -> None:
        """Prepare to find the `most` nearest candidates."""
        self._watch, self._blocks, self._most = watch, seen.blocks, most
        sizes = [block.rows for block in self._blocks]
        self._firsts = np.cumsum([0, *sizes])
        """The first row of each block among those of all, and their number."""
        self._pieces = deque(_pieces(sizes, piece_numbers // watch.query.shape[1]))
        self._nearest = exact.nothing(1)

    def step(self) -> bool:
        """Go through some more rows; return whether there are others left."""
        if self._pieces:
            number, start, end = self._pieces.popleft()
            seen = self._blocks[number]
            bits = np.zeros_like(seen.alive)
            part = slice(start // 8, -(-end // 8))
            bits[part] = self._chosen(seen)[part]
            scores, rows = seen.block.search_exactly(self._watch.query, self._most, bits)
            rows = np.where(rows < 0, -1, rows + self._firsts[number])
            self._nearest = exact.merge(self._nearest, (scores, rows), self._most)
        return bool(self._pieces)

    def agreement(self, cuts: Sequence[int]) -> dict[int, Agreement]:
        """Return for each k how many of the k nearest candidates are among the first k hits.

        A hit as near as the last of these counts as one of them: which of several candidates with
        the same vector are found is no question of recall (ANN-Benchmarks, Aumueller, Bernhardsson
        and Faithfull, 2018, counts by distance for the same reason).
        """
        scores, rows = (of_query[0] for of_query in self._nearest)
        scores, rows = scores[rows >= 0], rows[rows >= 0]
        ids = self._ids(rows)
        hits = self._watch.hits[: max(cuts, default=0)]
        known = dict(zip(ids, scores.tolist(), strict=True))
        others = [one for one in hits if one not in known]
        known.update(zip(others, self._scores(others).tolist(), strict=True))
        return {k: _agreement([known[one] for one in hits[:k]], scores[:k]) for k in cuts}

    def _chosen(self, seen: SeenBlock) -> bitmap.Bits:
        """Return the rows that the search could find."""
        if self._watch.condition is None:
            return seen.alive
        matching = seen.block.matching(self._watch.condition)
        return seen.alive & matching[: len(seen.alive)]  # a delta has grown meanwhile

    def _ids(self, rows: NDArray[np.int64]) -> list[str]:
        owners = np.searchsorted(self._firsts, rows, "right") - 1
        return [
            self._blocks[owner].block.ids(np.array([row - self._firsts[owner]]))[0]
            for owner, row in zip(owners.tolist(), rows.tolist(), strict=True)
        ]

    def _scores(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """Return the exact score of each candidate; -inf where the search could not find it."""
        scores = np.full(len(ids), -np.inf, np.float32)
        if not ids:
            return scores
        hashes = hashes_of(ids)
        for seen in self._blocks:
            rows = find_in(seen.block, hashes, ids)
            rows = np.where(rows < seen.rows, rows, -1)
            there = np.flatnonzero(bitmap.has(self._chosen(seen), rows))
            scores[there] = seen.block.vectors(rows[there]) @ self._watch.query[0]
        return scores


def _pieces(sizes: Sequence[int], rows: int) -> Iterator[tuple[int, int, int]]:
    """Return the number of each block with the first and the last row, exclusive, of a piece."""
    rows = max(8, rows // 8 * 8)  # whole bytes of bits
    for number, size in enumerate(sizes):
        for start in range(0, size, rows):
            yield number, start, min(size, start + rows)


def _agreement(hits: Sequence[float], nearest: NDArray[np.float32]) -> Agreement:
    """Count the hits, by their exact scores, that are as near as one of the nearest."""
    wanted = len(nearest)
    if not wanted:
        return Agreement(0, 0)
    furthest = float(nearest[-1]) - exact.TIE
    found = sum(score >= furthest for score in hits)
    return Agreement(min(found, wanted), wanted)
