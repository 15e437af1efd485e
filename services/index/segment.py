"""Blocks of rows that are searched exactly: the growing delta and the sealed segments.

A row is appended once and never changes but for `alive`. Readers take the number of rows first
and look no further, so one writer and any number of readers need no lock. (FAISS indexes must not
be searched while they grow; sealed ones never grow.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from mmesh.content import Attributes
from mmesh.filters import Filter
from mmesh.vectors import FloatMatrix
from services.index.filters import Columns, Mask

SPARSE = 0.03
"""Share of rows below which the chosen ones are gathered rather than skipped over."""


class Block(Protocol):
    """Rows that can be searched; `alive` says which still count."""

    ids: list[str]
    attributes: list[Attributes]
    alive: Mask

    def search(
        self, queries: FloatMatrix, limit: int, condition: Filter | None
    ) -> tuple[FloatMatrix, NDArray[np.int64]]:
        """Return scores and row numbers (m, k), best first; number -1 where there are fewer."""

    def vectors(self) -> FloatMatrix:
        """Return the vectors of all rows (n, dim)."""

    def __len__(self) -> int:
        """Return the number of rows, dead ones included."""


class Delta:
    """The newest rows, in plain memory; it grows up to its capacity."""

    def __init__(self, dim: int, capacity: int) -> None:
        self._vectors: FloatMatrix = np.empty((capacity, dim), np.float32)
        self.alive: Mask = np.zeros(capacity, np.bool_)
        self.ids: list[str] = []
        self.attributes: list[Attributes] = []
        self._rows = 0

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._rows

    @property
    def is_full(self) -> bool:
        """Whether no row fits any more."""
        return self._rows == len(self._vectors)

    def append(self, candidate_id: str, vector: FloatMatrix, attributes: Attributes) -> int:
        """Add a row and return its number; for the one writer only."""
        row = self._rows
        self._vectors[row] = vector
        self.ids.append(candidate_id)
        self.attributes.append(attributes)
        self.alive[row] = True
        self._rows = row + 1  # last: from here on readers see the row
        return row

    def vectors(self) -> FloatMatrix:
        """Return the vectors of all rows (n, dim)."""
        return self._vectors[: self._rows]

    def search(
        self, queries: FloatMatrix, limit: int, condition: Filter | None
    ) -> tuple[FloatMatrix, NDArray[np.int64]]:
        """Search the living rows that satisfy the condition; see `Block`."""
        rows = self._rows
        mask = self.alive[:rows].copy()
        if condition is not None:
            mask &= Columns(self.attributes[:rows]).mask(condition)
        return search_chosen(self._vectors[:rows], np.flatnonzero(mask), queries, limit)


class FlatSegment:
    """Sealed rows behind an exact FAISS index; immutable but for `alive`."""

    def __init__(self, ids: list[str], vectors: FloatMatrix, attributes: list[Attributes]) -> None:
        self.ids, self.attributes = ids, attributes
        self.alive: Mask = np.ones(len(ids), np.bool_)
        self._columns = Columns(attributes)
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(vectors)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)

    def vectors(self) -> FloatMatrix:
        """Return the index's own vectors (n, dim), without a copy."""
        dim = self._index.d
        flat = faiss.rev_swig_ptr(self._index.get_xb(), len(self) * dim)
        matrix: FloatMatrix = flat.reshape(-1, dim)
        return matrix

    def search(
        self, queries: FloatMatrix, limit: int, condition: Filter | None
    ) -> tuple[FloatMatrix, NDArray[np.int64]]:
        """Search the living rows that satisfy the condition; see `Block`."""
        mask = self.alive if condition is None else self.alive & self._columns.mask(condition)
        count = int(np.count_nonzero(mask))
        if count <= SPARSE * len(self):
            return search_chosen(self.vectors(), np.flatnonzero(mask), queries, limit)
        if count == len(self):
            scores, rows = self._index.search(queries, min(limit, count))
            return scores, rows
        selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))  # type: ignore[call-arg,arg-type]  # FAISS wraps it
        parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]  # FAISS wraps it
        scores, rows = self._index.search(queries, min(limit, count), params=parameters)
        return scores, rows


def search_chosen(
    vectors: FloatMatrix, chosen: NDArray[np.int64], queries: FloatMatrix, limit: int
) -> tuple[FloatMatrix, NDArray[np.int64]]:
    """Search only the rows whose numbers are in `chosen`, exactly."""
    if not len(chosen):
        empty = np.empty((len(queries), 0))
        return empty.astype(np.float32), empty.astype(np.int64)
    subset = vectors if len(chosen) == len(vectors) else vectors[chosen]
    k = min(limit, len(chosen))
    scores, rows = faiss.knn(queries, subset, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, chosen[rows]


def seal(blocks: Sequence[Block]) -> FlatSegment:
    """Return one segment with the living rows of `blocks`."""
    kept = [np.flatnonzero(block.alive[: len(block)]) for block in blocks]
    vectors = np.concatenate([b.vectors()[rows] for b, rows in zip(blocks, kept, strict=True)])
    ids = [b.ids[row] for b, rows in zip(blocks, kept, strict=True) for row in rows]
    attributes = [b.attributes[row] for b, rows in zip(blocks, kept, strict=True) for row in rows]
    return FlatSegment(ids, np.ascontiguousarray(vectors), attributes)
