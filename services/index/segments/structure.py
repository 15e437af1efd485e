"""One FAISS index and how to ask it, whatever its kind."""

from __future__ import annotations

import enum
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from mmesh.vectors import FloatMatrix
from services.index.segments import bitmap, gpu
from services.index.segments.exact import Nearest

RowNumbers = NDArray[np.int64]

MIN_DEPTH = 100
"""Rows that a quantised index scores anew from their vectors, unless it was tuned otherwise."""
DEPTH_PER_HIT = 4
"""At least so many times the hits, however it was tuned."""
MAX_LIMIT = 4_096
MEASURED_LIMIT = 10
"""Recall is measured at so many hits, and an effort is tuned for them."""
KEPT_PARAMETERS = 1_000


_PAGE = 4096
_untyped: Any = faiss
"""FAISS's type stubs lack these classes, or what its Python layer adds to them."""


class Kind(enum.Enum):
    """How an index goes through its rows, which says what it can be told."""

    FLAT = "flat"
    """All rows, exactly."""
    LISTS = "lists"
    """The rows of the `effort` nearest lists (IVF)."""
    GRAPH = "graph"
    """A walk that keeps the `effort` best rows (HNSW)."""
    SCAN = "scan"
    """All rows, by their codes."""


class Structure:
    """A FAISS index that is only read; any number of threads may search it."""

    def __init__(self, index: Any, *, effort: int = 0, depth: int = MIN_DEPTH) -> None:
        """Take an index over inner products.

        Args:
            index: any kind, as FAISS's reader or factory returned it.
            effort: lists or graph candidates that a search looks at when not told otherwise.
            depth: rows to score anew, at least, where the index has a refining stage.
        """
        self.index: Any = index
        self.effort, self.depth = effort, depth
        self.is_refined = isinstance(self.index, faiss.IndexRefine)
        base: Any = index
        if self.is_refined:
            base = faiss.downcast_index(index.base_index)
        self._transformed = isinstance(base, faiss.IndexPreTransform)
        self._core: Any = faiss.downcast_index(base.index) if self._transformed else base
        self.kind = _kind_of(self._core)
        self.has_selector = self._obeys_selectors()
        self.lasting_selector: faiss.IDSelector | None = None
        """A selector that lives as long as this object; its parameters are kept."""
        self._kept: dict[tuple[int, int, bool], Any] = {}
        self._turn: AbstractContextManager[Any] = nullcontext()
        if gpu.is_on_gpu(index):
            self._turn = gpu.turn

    @property
    def is_exact(self) -> bool:
        """Whether it always finds the best rows, by vectors as they are."""
        return self.kind is Kind.FLAT and not self._transformed and not self.is_refined

    @property
    def gains_from_batches(self) -> bool:
        """Whether several queries cost less in one call: matrix products, or fast-scan codes."""
        return self.kind is Kind.FLAT or hasattr(self._core, "bbs")

    @property
    def max_effort(self) -> int:
        """The effort that finds all that the index can find."""
        if gpu.has_lists(self._core):
            return min(gpu.MAX_LIMIT, int(self._core.getNumLists()))
        if self.kind is Kind.LISTS:
            return int(self._core.nlist)
        return int(self.index.ntotal) if self.kind is Kind.GRAPH else 0

    def codes_scanned(self, effort: int) -> float:
        """Return how many rows are scored by their codes in a search with that effort."""
        if self.kind is Kind.LISTS:
            return float(self.index.ntotal) * effort / self.max_effort
        if self.kind is Kind.GRAPH:
            return float(effort * self._core.hnsw.nb_neighbors(0))
        return float(self.index.ntotal)

    @property
    def max_limit(self) -> int:
        """Hits that it pays to ask for, or that can be asked for at all."""
        return gpu.MAX_LIMIT if gpu.is_on_gpu(self.index) else MAX_LIMIT

    def search(
        self,
        queries: FloatMatrix,
        limit: int,
        *,
        effort: int = 0,
        selector: faiss.IDSelector | None = None,
    ) -> Nearest:
        """Return scores and rows (m, limit), best first; row -1 where there are fewer.

        Args:
            queries: float32 (m, dim).
            limit: at least 1.
            effort: instead of the index's own.
            selector: which rows may be found; only where `has_selector`.
        """
        parameters = self._parameters(limit, effort or self.effort, selector)
        with self._turn:
            scores, rows = self.index.search(queries, limit, params=parameters)
        return scores, rows

    def _parameters(self, limit: int, effort: int, selector: faiss.IDSelector | None) -> Any:
        """Return FAISS's parameters; making them takes longer than finding them again."""
        if selector is not None and selector is not self.lasting_selector:
            return self._make_parameters(limit, effort, selector)
        key = (limit, effort, selector is None)
        if key not in self._kept:
            if len(self._kept) > KEPT_PARAMETERS:
                self._kept = {}
            self._kept[key] = self._make_parameters(limit, effort, selector)
        return self._kept[key]

    def set_depth(self, depth: int) -> None:
        """Score so many rows anew, at least; not while others search."""
        self.depth, self._kept = depth, {}

    def _make_parameters(self, limit: int, effort: int, selector: faiss.IDSelector | None) -> Any:
        core = self._core_parameters(effort, selector)
        if core is not None and self._transformed:
            core = _untyped.SearchParametersPreTransform(index_params=core)
        if not self.is_refined:
            return core
        factor = max(self.depth, DEPTH_PER_HIT * limit) / limit
        refine = {"k_factor": max(1.0, math.nextafter(factor, math.inf))}
        if core is not None:
            refine["base_index_params"] = core
        return _untyped.IndexRefineSearchParameters(**refine)

    def _core_parameters(self, effort: int, selector: faiss.IDSelector | None) -> Any:
        chosen: dict[str, Any] = {} if selector is None else {"sel": selector}
        if self.kind is Kind.LISTS:
            return _untyped.SearchParametersIVF(nprobe=min(effort, self.max_effort), **chosen)
        if self.kind is Kind.GRAPH:
            return _untyped.SearchParametersHNSW(efSearch=effort, **chosen)
        return _untyped.SearchParameters(**chosen) if chosen else None

    def _obeys_selectors(self) -> bool:
        """Whether a selector of no row finds none: some kinds refuse selectors, or ignore them."""
        nothing = selector_of(np.zeros(-(-self.index.ntotal // 8), np.uint8))
        query = np.zeros((1, self.index.d), np.float32)
        try:
            parameters = self._make_parameters(1, 1, nothing)
            _, rows = self.index.search(query, 1, params=parameters)
        except RuntimeError:
            return False
        return bool((rows < 0).all())


def _kind_of(core: faiss.Index) -> Kind:
    if isinstance(core, faiss.IndexFlat):
        return Kind.FLAT
    if isinstance(core, faiss.IndexIVF) or gpu.has_lists(core):
        return Kind.LISTS
    return Kind.GRAPH if isinstance(core, faiss.IndexHNSW) else Kind.SCAN


class Vectors:
    """The vectors of an index's rows, as exactly as they are stored."""

    def __init__(self, index: faiss.Index, stored: NDArray[np.float16] | None = None) -> None:
        """Take them from the index where it has them (see `keeps_vectors`), else from `stored`."""
        self._index = index  # owns the memory
        self._part: Any = _plain_part(index) if stored is None else None
        self.matrix: NDArray[np.float32] | NDArray[np.float16]
        """(n, dim), without a copy."""
        self.matrix = stored if stored is not None else _matrix_of(self._part)

    def take(self, rows: RowNumbers) -> FloatMatrix:
        """Return the vectors of `rows` as float32."""
        return self.matrix[rows].astype(np.float32, copy=False)

    @property
    def is_indexed(self) -> bool:
        """Whether FAISS can go through the vectors; see `search`."""
        return self._part is not None

    def search(self, queries: FloatMatrix, limit: int, selector: Any) -> Nearest:
        """Search exactly among the rows of a selector; see `Structure.search`."""
        parameters = _untyped.SearchParameters(sel=selector)
        scores, rows = self._part.search(queries, limit, params=parameters)
        return scores, rows

    def prefault(self) -> None:
        """Read every page once, so that no search waits for the disk."""
        if self.is_mapped:
            self.matrix.reshape(-1).view(np.uint8)[::_PAGE].max(initial=0)

    @property
    def is_mapped(self) -> bool:
        """Whether the vectors lie in a file beside the index."""
        return isinstance(self.matrix, np.memmap)


def keeps_vectors(index: faiss.Index) -> bool:
    """Whether the index stores its vectors as floats of 16 or 32 bits that can be read back."""
    return _plain_part(index) is not None


def _plain_part(index: Any) -> Any:
    if isinstance(index, faiss.IndexRefine):
        index = faiss.downcast_index(index.refine_index)
    if isinstance(index, faiss.IndexFlat):
        return index
    half = isinstance(index, faiss.IndexScalarQuantizer)
    return index if half and index.sq.qtype == faiss.ScalarQuantizer.QT_fp16 else None


def _matrix_of(part: Any) -> NDArray[np.float32] | NDArray[np.float16]:
    codes = faiss.rev_swig_ptr(part.codes.data(), part.ntotal * part.code_size)
    dtype = np.float32 if isinstance(part, faiss.IndexFlat) else np.float16
    matrix: Any = codes.view(dtype).reshape(part.ntotal, part.d)
    return matrix  # type: ignore[no-any-return]  # of either type


def selector_of(bits: bitmap.Bits) -> Any:
    """Return a selector that reads `bits`, without a copy, whenever it is asked."""
    return _untyped.IDSelectorBitmap(bits)
