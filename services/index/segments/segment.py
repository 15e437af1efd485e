"""Sealed rows behind a search structure; immutable but for which rows are alive."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmesh.errors import DataLoss
from mmesh.filters import Filter
from mmesh.vectors import FloatMatrix
from services.index.segments import bitmap, exact, files, gpu
from services.index.segments.columns import Chosen, ChosenCache
from services.index.segments.exact import Nearest
from services.index.segments.files import About, RowData
from services.index.segments.ids import Hashes
from services.index.segments.structure import (
    MEASURED_LIMIT,
    MIN_DEPTH,
    Kind,
    Structure,
    Vectors,
    selector_of,
)

RowNumbers = NDArray[np.int64]

SPARSE_SHARE, SPARSE_ROWS = 0.03, 5_000
"""Up to this share or number of rows, chosen rows are searched exactly, one by one."""
OVERFETCH = 1.5
"""More rows than needed by the share of chosen ones, for structures that cannot be told which."""


class Segment:
    """Rows that never change, but die; one thread may kill while others search."""

    def __init__(
        self,
        path: Path,
        about: About,
        structure: Structure,
        vectors: Vectors,
        rows: RowData,
    ) -> None:
        """Put the parts together; see `open`."""
        self.folder, self.about = path, about
        self._structure, self._vectors, self._rows = structure, vectors, rows
        self._alive = bitmap.all_rows(about.rows)
        structure.lasting_selector = selector_of(self._alive)  # sees what becomes of the bits
        self.dead = 0
        """Rows that were killed."""
        self._few = max(SPARSE_ROWS, int(SPARSE_SHARE * about.rows))
        self._chosen = ChosenCache(rows.columns, self._few)

    @classmethod
    def open(cls, path: Path, device: str = "cpu") -> Segment:
        """Load a segment into memory; the folder may be removed afterwards.

        Args:
            path: a folder as the builder or `Delta.save` wrote it.
            device: `cpu` or `cuda`; kinds that no GPU can search stay on the CPU.

        Raises:
            DataLoss: a file is missing, cut short, or does not fit the others.
        """
        about = files.read_about(path)
        index = files.read_index(path, about)
        vectors = files.read_vectors(path, about, index)
        rows = files.read_rows(path, about)
        exact.prepare(about.dim)
        vectors.prefault()
        served = gpu.moved(index) if device == "cuda" else index
        structure = Structure(served, effort=about.nprobe, depth=about.depth or MIN_DEPTH)
        return cls(path, about, structure, vectors, rows)

    def __len__(self) -> int:
        """Return the number of rows, dead ones included."""
        return self.about.rows

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.about.dim

    @property
    def index_factory(self) -> str:
        """FAISS factory string of the search structure."""
        return self.about.index_factory

    @property
    def gains_from_batches(self) -> bool:
        """Whether several queries cost less in one search than one by one."""
        return self._structure.gains_from_batches

    @property
    def recall(self) -> float:
        """Recall@10 against exact search, measured when it was built."""
        return self.about.recall

    @property
    def nprobe(self) -> int:
        """Lists or graph candidates that an unfiltered search looks at."""
        return self.about.nprobe

    @property
    def build_seconds(self) -> float:
        """Seconds that building it took."""
        return self.about.build_seconds

    def ids(self, rows: RowNumbers) -> list[str]:
        """Return the ids of `rows`."""
        return self._rows.ids.take(rows)

    def attributes(self, rows: RowNumbers) -> list[str]:
        """Return the attributes of `rows` as JSON; empty without any."""
        return self._rows.attributes.take(rows)

    def find(self, hashes: Hashes, ids: Sequence[str]) -> RowNumbers:
        """Return the row of each id, dead or alive, -1 where it is absent.

        Args:
            hashes: `hash_of` of each id.
            ids: any ids.
        """
        return self._rows.ids.find(hashes, ids)

    def vectors(self, rows: RowNumbers) -> FloatMatrix:
        """Return the vectors of `rows`, float32 (len(rows), dim).

        All but exact segments keep 16 bits of each number.
        """
        return self._vectors.take(rows)

    def kill(self, rows: RowNumbers) -> None:
        """Hide rows from all searches that begin from now on; for the one writer only."""
        self.dead += bitmap.remove(self._alive, rows)

    def alive_bits(self) -> bytes:
        """Return the living rows as packed bits, low bit first."""
        return self._alive.tobytes()

    def set_alive(self, bits: bytes) -> None:
        """Make exactly these rows alive; the bits are as from `alive_bits`.

        Raises:
            DataLoss: they are of another number of rows.
        """
        if len(bits) != len(self._alive):
            raise DataLoss(f"segment {self.folder.name} is given living rows of another segment")
        self._alive[:] = np.frombuffer(bits, np.uint8) & bitmap.all_rows(len(self))
        self.dead = len(self) - bitmap.count(self._alive)

    def memory(self) -> Mapping[str, int]:
        """Return bytes in memory by part."""
        return {
            "vectors": sum(self.about.sizes.get(name, 0) for name in (files.INDEX, files.VECTORS)),
            "ids": self._rows.ids.size_bytes,
            "attributes": self._rows.attributes.size_bytes,
            "columns": self._rows.columns.size_bytes + self._chosen.size_bytes,
        }

    def search(self, queries: FloatMatrix, limit: int, condition: Filter | None = None) -> Nearest:
        """Return the rows nearest to each query among those that live and satisfy the condition.

        Args:
            queries: float32 (m, dim), unit rows.
            limit: how many hits, at least 1.
            condition: which rows may be found; all when None.

        Returns:
            Scores float32 and rows int64 (m, k), best first, k <= limit; row -1 where there are
            fewer. A query gets fewer than `limit` only when fewer rows may be found.
        """
        if condition is None and not self.dead:
            return self._search_whole(queries, limit)
        chosen = self._choose(condition)
        wanted = min(limit, chosen.count)
        if not wanted:
            return exact.nothing(len(queries))
        left_out = len(self) - chosen.count
        if self._structure.is_exact and left_out <= min(limit, self._structure.max_limit - wanted):
            return self._search_nearly_whole(queries, wanted, chosen)
        if self._is_sparse(chosen.count, len(queries)):
            return self._search_exactly(queries, wanted, chosen)
        return self._completed(queries, self._search_chosen(queries, wanted, chosen), chosen)

    def _search_whole(self, queries: FloatMatrix, limit: int) -> Nearest:
        wanted = min(limit, len(self))
        if not wanted:
            return exact.nothing(len(queries))
        found = self._structure.search(queries, wanted, effort=self._effort(1.0, wanted))
        return self._completed(queries, found, Chosen(self._alive, len(self)))

    def matching(self, condition: Filter) -> bitmap.Bits:
        """Return the rows that satisfy a condition, dead ones included."""
        return self._chosen.get(condition).bits

    def search_exactly(self, queries: FloatMatrix, limit: int, bits: bitmap.Bits) -> Nearest:
        """Return the rows nearest to each query among those of a set, dead or alive; see `search`.

        They are the nearest ones by the vectors as they are stored, whatever the structure.
        """
        return self._search_exactly(queries, limit, Chosen(bits, bitmap.count(bits)))

    def _search_nearly_whole(self, queries: FloatMatrix, limit: int, chosen: Chosen) -> Nearest:
        """Search all rows for so many hits that enough of them are chosen ones."""
        found = self._structure.search(queries, limit + len(self) - chosen.count)  # is exact
        return exact.only(found, bitmap.has(chosen.bits, found[1]), limit)

    def _choose(self, condition: Filter | None) -> Chosen:
        """Return the living rows that satisfy the condition."""
        if condition is None:
            return Chosen(self._alive, len(self) - self.dead)
        chosen = self._chosen.get(condition)
        if not self.dead:
            return chosen
        if chosen.rows is not None:
            rows = chosen.rows[bitmap.has(self._alive, chosen.rows)]
            return Chosen(chosen.bits & self._alive, len(rows), rows)
        bits = chosen.bits & self._alive
        return Chosen(bits, bitmap.count(bits))

    def _is_sparse(self, count: int, m: int) -> bool:
        """Whether it is best to go through the chosen rows alone."""
        if self._structure.kind is not Kind.FLAT:
            return count <= self._few
        return m >= exact.GEMM_QUERIES or count <= SPARSE_SHARE * len(self)  # exact either way

    def _search_exactly(self, queries: FloatMatrix, limit: int, chosen: Chosen) -> Nearest:
        """Search by the vectors themselves.

        To gather a row and turn it into float32 takes as long as to ask the bits about some `dim`
        rows; but gathered rows can be scored for many queries at once.
        """
        few_queries = len(queries) < exact.GEMM_QUERIES
        if few_queries and self._vectors.is_indexed and chosen.count * self.dim > len(self):
            return self._vectors.search(queries, limit, selector_of(chosen.bits))
        rows = bitmap.rows_of(chosen.bits, len(self)) if chosen.rows is None else chosen.rows
        return exact.search_rows(queries, self._vectors.take, rows, limit)

    def _search_chosen(self, queries: FloatMatrix, limit: int, chosen: Chosen) -> Nearest:
        structure, share = self._structure, chosen.count / len(self)
        if not structure.has_selector:
            return self._overfetch(queries, limit, chosen)
        lasting = chosen.bits is self._alive
        selector = structure.lasting_selector if lasting else selector_of(chosen.bits)
        effort = self._effort(share, limit)
        found = structure.search(queries, limit, effort=effort, selector=selector)
        return exact.only(found, bitmap.has(chosen.bits, found[1]), limit)

    def _effort(self, share: float, limit: int) -> int:
        structure = self._structure
        return math.ceil(structure.effort * widening(structure.kind, share, limit))

    def _overfetch(self, queries: FloatMatrix, limit: int, chosen: Chosen) -> Nearest:
        """Ask for so many more rows that enough of them are chosen ones."""
        fetched = math.ceil(OVERFETCH * limit * len(self) / chosen.count) + limit
        if fetched > self._structure.max_limit:
            return self._search_exactly(queries, limit, chosen)
        fetched = min(fetched, len(self))
        found = self._structure.search(queries, fetched, effort=self._effort(1.0, fetched))
        return exact.only(found, bitmap.has(chosen.bits, found[1]), limit)

    def _completed(self, queries: FloatMatrix, found: Nearest, chosen: Chosen) -> Nearest:
        """Search again, first everywhere and then exactly, for the queries that lack hits."""
        for search in (self._search_everywhere, self._search_exactly):
            scores, rows = found
            lacking = np.flatnonzero(rows[:, -1] < 0)
            if not len(lacking):
                break
            more = search(queries[lacking], rows.shape[1], chosen)
            width = more[1].shape[1]  # fewer when rows were killed meanwhile
            rows[lacking] = -1
            scores[lacking, :width], rows[lacking, :width] = more
        return found

    def _search_everywhere(self, queries: FloatMatrix, limit: int, chosen: Chosen) -> Nearest:
        structure = self._structure
        if not structure.has_selector or structure.kind is not Kind.LISTS:
            return self._search_exactly(queries, limit, chosen)
        selector = selector_of(chosen.bits)
        found = structure.search(queries, limit, effort=structure.max_effort, selector=selector)
        return exact.only(found, bitmap.has(chosen.bits, found[1]), limit)


@lru_cache(maxsize=256)
def widening(kind: Kind, share: float, limit: int) -> float:
    """Return how much more effort it takes to find `limit` hits among a share of the rows.

    As measured on embeddings of texts, in steps, so that parameters can be kept and used again.
    """
    by_share = {Kind.LISTS: 0.4, Kind.GRAPH: 1.0}.get(kind, 0.0) * -math.log2(share)
    by_limit = 0.25 * math.log2(max(1.0, limit / MEASURED_LIMIT))
    return float(2 ** (round(4 * (by_share + by_limit)) / 4))
