"""Exact search, as plain as it gets: over all rows of a matrix or over chosen ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import faiss
import numpy as np
from numpy.typing import NDArray

from mmesh.vectors import FloatMatrix

RowNumbers = NDArray[np.int64]
Nearest = tuple[FloatMatrix, RowNumbers]
"""Scores and row numbers (m, k), best first; row -1 where there are fewer than k."""

TIE = 1e-6
"""Scores nearer to one another are the same: they were summed up in another order."""
BLOCK_ROWS = 16_384
"""Rows that are turned into float32 at a time, which bounds the memory that it takes."""
GEMM_QUERIES = 3
"""From so many queries on, a matrix product beats scalar products one by one."""


def prepare(dim: int) -> None:
    """Let FAISS score batches of `dim`-wide queries by matrix products.

    FAISS compares one number of the process with queries times dim. The widest collection sets it,
    so that no single query is ever scored the way of batches.
    """
    if dim not in _prepared:
        _prepared.add(dim)
        faiss.cvar.distance_compute_blas_threshold = GEMM_QUERIES * max(_prepared)


_prepared: set[int] = set()


def single_threaded() -> None:
    """Make FAISS use one thread for what the calling thread asks of it."""
    faiss.omp_set_num_threads(1)


def nothing(m: int) -> Nearest:
    """Return the answer to m queries where no row can be found."""
    return np.empty((m, 0), np.float32), np.empty((m, 0), np.int64)


def search_all(queries: FloatMatrix, vectors: FloatMatrix, limit: int) -> Nearest:
    """Search all rows of `vectors` (n, dim); at most n hits a query."""
    k = min(limit, len(vectors))
    if not k:
        return nothing(len(queries))
    scores, rows = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, rows


def search_rows(
    queries: FloatMatrix,
    vectors_of: Callable[[RowNumbers], FloatMatrix],
    rows: RowNumbers,
    limit: int,
) -> Nearest:
    """Search only the given rows; `vectors_of` returns the vectors of some of them."""
    best = nothing(len(queries))
    for block in _blocks(rows):
        scores, places = search_all(queries, vectors_of(block), limit)
        found = scores, block[places]
        best = found if len(rows) == len(block) else merge(best, found, limit)
    return best


def _blocks(rows: RowNumbers) -> Iterator[RowNumbers]:
    for start in range(0, len(rows), BLOCK_ROWS):
        yield rows[start : start + BLOCK_ROWS]


def merge(one: Nearest, other: Nearest, limit: int) -> Nearest:
    """Return the best `limit` of two answers to the same queries."""
    scores = np.concatenate([one[0], other[0]], axis=1)
    rows = np.concatenate([one[1], other[1]], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :limit]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def only(found: Nearest, valid: NDArray[np.bool_], limit: int) -> Nearest:
    """Return the best `limit` of the valid hits of each query; row -1 where there are fewer."""
    scores, rows = found
    if valid.all():
        return scores[:, :limit], rows[:, :limit]
    order = np.argsort(~valid, axis=1, kind="stable")[:, :limit]
    kept = np.take_along_axis(valid, order, axis=1)
    rows = np.where(kept, np.take_along_axis(rows, order, axis=1), -1)
    return np.take_along_axis(scores, order, axis=1), rows


def search_subset(
    queries: FloatMatrix, vectors: FloatMatrix, rows: RowNumbers, limit: int
) -> Nearest:
    """Search the given rows of `vectors`, which is contiguous in memory."""
    if len(queries) >= GEMM_QUERIES:
        return search_rows(queries, lambda block: vectors[block], rows, limit)
    k = min(limit, len(rows))
    if not k:
        return nothing(len(queries))
    queries = np.ascontiguousarray(queries, np.float32)
    scores = np.empty((len(queries), k), np.float32)
    found = np.empty((len(queries), k), np.int64)
    faiss.knn_inner_products_by_idx(  # type: ignore[attr-defined]  # missing from its stubs
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        faiss.swig_ptr(rows),
        vectors.shape[1],
        len(queries),
        len(vectors),
        len(rows),
        k,
        faiss.swig_ptr(scores),
        faiss.swig_ptr(found),
        0,  # the same rows for every query
    )
    return scores, found
