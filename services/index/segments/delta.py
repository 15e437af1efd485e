"""The newest rows, in plain memory, searched exactly.

A row is appended once and never changes but for being alive. Readers take the number of rows first
and look no further, so one writer and any number of readers need no lock. (FAISS indexes must not
be searched while they grow; this is none.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from mmesh.filters import Filter
from mmesh.vectors import FloatMatrix
from services.index.segments import bitmap, exact
from services.index.segments.columns import ChosenCache, Columns
from services.index.segments.exact import Nearest
from services.index.segments.files import About, RowData, write_segment
from services.index.segments.ids import Hashes, IdTable
from services.index.segments.strings import Strings

RowNumbers = NDArray[np.int64]


class Delta:
    """Rows in plain memory, up to a capacity."""

    def __init__(self, dim: int, capacity: int) -> None:
        self._vectors: FloatMatrix = np.empty((capacity, dim), np.float32)
        self._hashes = np.empty(capacity, np.uint64)
        self._alive = np.zeros(capacity, np.bool_)
        self._ids: list[str] = []
        self._attributes: list[str] = []
        self._places: dict[str, int] = {}
        self._blocks: tuple[tuple[int, ChosenCache], ...] = ()
        self._rows = 0
        self._id_characters = self._attribute_characters = 0
        self.dead = 0
        """Rows that were killed."""
        exact.prepare(dim)

    def __len__(self) -> int:
        """Return the number of rows, dead ones included."""
        return self._rows

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self._vectors.shape[1])

    @property
    def free(self) -> int:
        """How many more rows fit."""
        return len(self._vectors) - self._rows

    @property
    def is_full(self) -> bool:
        """Whether no row fits any more."""
        return not self.free

    def append_many(
        self,
        ids: Sequence[str],
        hashes: Hashes,
        attributes: Sequence[str],
        vectors: FloatMatrix,
    ) -> RowNumbers:
        """Add rows and return their numbers; for the one writer only.

        Args:
            ids: of new rows. An older row of the same id stays alive: kill it afterwards.
            hashes: `hash_of` of each id.
            attributes: JSON of each row; empty without any.
            vectors: float32 (len(ids), dim), unit rows.

        Raises:
            ValueError: they are more than `free`.
        """
        start, end = self._rows, self._rows + len(ids)
        if end > len(self._vectors):
            raise ValueError(f"{len(ids)} rows do not fit into the {self.free} that are free")
        self._vectors[start:end] = vectors
        self._hashes[start:end] = hashes
        self._ids += ids
        self._attributes += attributes
        self._id_characters += sum(map(len, ids))
        self._attribute_characters += sum(map(len, attributes))
        self._alive[start:end] = True
        self._places.update(zip(ids, range(start, end), strict=True))
        self._rows = end  # last: from here on readers see the rows
        return np.arange(start, end)

    def find(self, candidate_id: str) -> int:
        """Return the newest row of an id, dead or alive; -1 when it is absent."""
        return self._places.get(candidate_id, -1)

    def ids(self, rows: RowNumbers) -> list[str]:
        """Return the ids of `rows`."""
        return [self._ids[row] for row in rows.tolist()]

    def attributes(self, rows: RowNumbers) -> list[str]:
        """Return the attributes of `rows` as JSON; empty without any."""
        return [self._attributes[row] for row in rows.tolist()]

    def vectors(self, rows: RowNumbers) -> FloatMatrix:
        """Return the vectors of `rows`, float32 (len(rows), dim)."""
        return self._vectors[rows]

    def kill(self, rows: RowNumbers) -> None:
        """Hide rows from all searches that begin from now on; for the one writer only."""
        rows = np.unique(rows)
        self.dead += int(np.count_nonzero(self._alive[rows]))
        self._alive[rows] = False

    def alive_bits(self) -> bytes:
        """Return the living rows as packed bits, low bit first."""
        return bitmap.pack(self._alive[: self._rows]).tobytes()

    def memory(self) -> Mapping[str, int]:
        """Return bytes in memory by part; those of strings are estimates."""
        return {
            "vectors": self._vectors.nbytes,
            "ids": self._hashes.nbytes + self._id_characters + 160 * self._rows,
            "attributes": self._attribute_characters + 60 * self._rows,
            "columns": sum(block.size_bytes for _, block in self._blocks),
        }

    def search(self, queries: FloatMatrix, limit: int, condition: Filter | None = None) -> Nearest:
        """Return the nearest living rows that satisfy the condition; see `Segment.search`."""
        rows, dead = self._rows, self.dead
        if condition is None and dead <= limit:
            found = exact.search_all(queries, self._vectors[:rows], limit + dead)
            return exact.only(found, self._alive[found[1]], limit)
        mask = self._alive[:rows]
        if condition is not None:
            mask = mask & self._mask(condition, rows)
        return exact.search_subset(queries, self._vectors, np.flatnonzero(mask), limit)

    def matching(self, condition: Filter) -> bitmap.Bits:
        """Return the rows that satisfy a condition, dead ones included."""
        return bitmap.pack(self._mask(condition, self._rows))

    def search_exactly(self, queries: FloatMatrix, limit: int, bits: bitmap.Bits) -> Nearest:
        """Return the rows nearest to each query among those of a set; see `Segment.search`."""
        rows = bitmap.rows_of(bits, min(self._rows, 8 * len(bits)))
        return exact.search_subset(queries, self._vectors, rows, limit)

    def _mask(self, condition: Filter, rows: int) -> NDArray[np.bool_]:
        """Return which of the first `rows` rows satisfy the condition."""
        mask = np.zeros(rows, np.bool_)
        for start, block in self._columns(rows):
            part = block.get(condition)
            covered = np.unpackbits(part.bits, bitorder="little")[: max(0, rows - start)]
            mask[start : start + len(covered)] = covered
        return mask

    def _columns(self, rows: int) -> Sequence[tuple[int, ChosenCache]]:
        """Return blocks of columns, each with its first row, that cover `rows` rows or more.

        New rows are read into a block of their own, together with the blocks before them that are
        no longer: so each row is read again only as often as its block doubles.
        """
        blocks = self._blocks
        covered = blocks[-1][0] + len(blocks[-1][1]) if blocks else 0
        if covered >= rows:
            return blocks
        while blocks and len(blocks[-1][1]) <= rows - covered:
            covered = blocks[-1][0]
            blocks = blocks[:-1]
        columns = Columns.of(self._attributes[covered:rows])
        blocks = (*blocks, (covered, ChosenCache(columns, few=0)))
        self._blocks = blocks  # another reader may put others there; either will do
        return blocks

    def save(self, folder: Path) -> None:
        """Write all rows, dead ones too and by the same numbers, as an exact segment.

        For the one writer only. The folder must exist and be empty.
        """
        rows = self._rows
        index = faiss.IndexFlatIP(self.dim)
        index.add(self._vectors[:rows])
        table = IdTable.of(Strings.pack(self._ids[:rows]), self._hashes[:rows])
        attributes = self._attributes[:rows]
        data = RowData(table, Strings.pack(attributes), Columns.of(attributes))
        write_segment(folder, About(rows, self.dim, "Flat"), index, data)
