"""Reproducible searches: the same vectors find the same, however rows are stored and batched.

A matrix product adds up in an order that depends on what else is in it, so the last bits of scores
differ from batch to batch and from segment to segment; and of rows with equal scores any may be
among the first. Here what was found is scored anew, each pair by itself in double precision, and
equal scores go by id. More is fetched than is asked for, until what was left out scores clearly
less: rounding cannot bring it in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmesh.filters import Filter
from mmesh.vectors import FloatMatrix
from services.index.segments import gpu
from services.index.segments.delta import Delta
from services.index.segments.exact import Nearest
from services.index.segments.segment import Segment

RowNumbers = NDArray[np.int64]
MORE = 16
"""Rows that are fetched beyond those that are asked for, at first."""
MOST = gpu.MAX_LIMIT
"""Rows that are fetched in the end: of more copies than that of one vector any may be found."""
ROUNDING = 1e-5
"""More than the scores of one pair differ by; vectors have unit length."""


Block = Segment | Delta


def search(block: Block, queries: FloatMatrix, limit: int, condition: Filter | None) -> Nearest:
    """Return the `limit` best rows of a block for each query, as `Block.search` does."""
    scores = np.full((len(queries), limit), -np.inf, np.float32)
    rows = np.full((len(queries), limit), -1, np.int64)
    fetched, most = limit + MORE, max(limit + MORE, MOST)
    left = np.arange(len(queries))
    while left.size:
        found = _ranked(block, queries[left], fetched, condition)
        width = min(limit, found.rows.shape[1])
        scores[left, :width], rows[left, :width] = found.scores[:, :width], found.rows[:, :width]
        is_all = found.rows.shape[1] < fetched
        left = left[:0] if is_all or fetched == most else left[~_are_settled(found, limit)]
        fetched = min(4 * fetched, most)
    return scores, rows


class _Ranked(NamedTuple):
    """Rows (m, k) in their order, by scores of their own; `rough` is what the block found."""

    rough: FloatMatrix
    scores: FloatMatrix
    rows: RowNumbers


def _ranked(block: Block, queries: FloatMatrix, limit: int, condition: Filter | None) -> _Ranked:
    rough, rows = block.search(queries, limit, condition)
    scores = _scores(block, queries, rows)
    order = _order(block, scores, rows)
    scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    return _Ranked(rough, scores, rows)


def _scores(block: Block, queries: FloatMatrix, rows: RowNumbers) -> FloatMatrix:
    """Return the score of each pair (m, k), rounded from double precision; -inf without a row."""
    scores = np.full(rows.shape, -np.inf, np.float32)
    for number, query in enumerate(queries.astype(np.float64)):
        known = rows[number] >= 0
        vectors = block.vectors(rows[number, known]).astype(np.float64)
        scores[number, known] = np.einsum("kd,d->k", vectors, query)
    return scores


def _order(block: Block, scores: FloatMatrix, rows: RowNumbers) -> RowNumbers:
    """Return the places of each query's rows, best first; equal scores by id."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, 1)
    tied = (ranked[:, 1:] == ranked[:, :-1]) & np.isfinite(ranked[:, 1:])
    for number in np.flatnonzero(tied.any(axis=1)):
        ids = block.ids(np.maximum(rows[number], 0))
        keys = sorted(range(len(ids)), key=lambda n: (-scores[number, n], ids[n]))
        order[number] = keys
    return order


def _are_settled(found: _Ranked, limit: int) -> NDArray[np.bool_]:
    """Tell for each query whether no row that was not fetched can be among the first `limit`."""
    is_full = found.rows[:, -1] >= 0
    is_clear = found.rough[:, -1] < found.scores[:, limit - 1] - ROUNDING
    settled: NDArray[np.bool_] = is_clear | ~is_full
    return settled
