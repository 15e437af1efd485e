"""Which search structure a segment gets, and how hard it must look to find enough."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmesh.errors import InvalidField
from mmesh.vectors import FloatMatrix
from services.index.segments.exact import TIE
from services.index.segments.structure import MEASURED_LIMIT, MIN_DEPTH, Kind, Structure

RowNumbers = NDArray[np.int64]
FloatVector = NDArray[np.float32]

FLAT = "Flat"
FLAT_ROWS = 20_000
"""Below so many rows exact search is fast enough."""
MIN_CODED_DIM = 16
"""Below it, codes of half a byte for two dimensions save nothing."""
POINTS_PER_CENTROID = 39
"""FAISS wants so many rows, at least, to place each centroid."""

RANGE_ROWS = 1000
"""Rows in which a scalar quantiser sees the range of each dimension."""

MAX_FACTORY_BYTES = 256
MAX_LISTS = 2**20
MAX_NEIGHBOURS = 128
MAX_CODEBOOK_BYTES = 64 * 2**20

DEVIATIONS = 1.65
"""So many standard errors a sample's recall must lie above the target: then other queries reach the
target in 19 of 20 cases."""
MAX_GRAPH_EFFORT = 2_048
MAX_DEPTH = 1_600
LESS_DEPTHS = (60, 44)
"""Instead of `MIN_DEPTH`, where that is cheaper."""
CODES_A_ROW = 80
"""Codes that are scanned in the time in which one row is fetched and scored anew."""


def automatic_factory(rows: int, dim: int, device: str = "cpu") -> str:
    """Return the factory string that serves so many rows best on a device, `cpu` or `cuda`."""
    if rows < FLAT_ROWS:
        return FLAT
    lists = 1 << round(math.log2(2 * math.sqrt(rows)))
    if device == "cuda":  # which has neither fast-scan codes nor a refining stage
        return f"IVF{lists},SQfp16"
    if dim % 2 or dim < MIN_CODED_DIM:
        return f"IVF{lists},SQ8,Refine(SQfp16)"
    return f"IVF{lists},PQ{dim // 2}x4fs,Refine(SQfp16)"


def wanted_factory(index_factory: str, rows: int, dim: int, device: str = "cpu") -> str:
    """Return the factory string for a segment of so many rows.

    It is the collection's own, else the automatic one; exact while the rows are too few to train
    the collection's own (`rows_to_train`).
    """
    if not index_factory:
        return automatic_factory(rows, dim, device)
    return index_factory if rows >= max(1, rows_to_train(index_factory, dim)) else FLAT


def rows_to_train(index_factory: str, dim: int) -> int:
    """Return how many rows a structure needs to be trained well: 39 for each centroid."""
    lists = [int(number) for number in re.findall(r"IVF(\d+)", index_factory)]
    books = [1 << bits for bits in _code_bits(index_factory)]
    rotations = [dim] if re.search(r"PCA|OPQ|ITQ", index_factory) else []
    ranges = [RANGE_ROWS] if re.search(r"SQ\d", index_factory) else []
    return max([0, *rotations, *ranges, *(POINTS_PER_CENTROID * count for count in lists + books)])


def _code_bits(index_factory: str) -> list[int]:
    return [int(bits or 8) for bits in re.findall(r"(?<!O)PQ\d+(?:x(\d+))?", index_factory)]


_PART = re.compile(
    r"""IVF\d+ (_HNSW\d*)? | HNSW\d* | Flat | SQ\w+ | PQ\d+(x\d+)?\w* | RaBitQ\w*
    | RR\d* | OPQ\d+(_\d+)? | PCA(R|W|WR)?\d+ | ITQ\d* | RFlat | Refine\(\w+\)""",
    re.VERBOSE,
)
_OFFERED = "Flat, SQ, PQ, RaBitQ, IVF, HNSW, RR, OPQ, PCA, ITQ, RFlat and Refine(...)"


def check_factory(index_factory: str, dim: int, path: str = "settings.index_factory") -> None:
    """Raise `InvalidField`, naming `path`, unless this structure is offered for `dim`.

    The empty string stands for the automatic choice. What would take much memory before it holds a
    single row is refused. Whether FAISS can build the rest is seen by a trial, see `trial`.
    """
    if not index_factory:
        return
    if len(index_factory.encode()) > MAX_FACTORY_BYTES:
        raise InvalidField(path, f"is over {MAX_FACTORY_BYTES} bytes")
    for part in index_factory.split(","):
        if not _PART.fullmatch(part):
            raise InvalidField(path, f"has the part {part!r}; FAISS's {_OFFERED} are offered")
    _check_sizes(index_factory, dim, path)
    if "HNSW" in re.sub(r"IVF\d+_HNSW", "", index_factory) and "RaBitQ" in index_factory:
        raise InvalidField(path, "is for Euclidean distances only; scores are inner products")


_WHERE = re.compile(r"Error in .*? at \S+:\d+: |Error: ", re.DOTALL)


def reason_of(error: Exception) -> str:
    """Return what FAISS says is wrong, without the place in its sources."""
    return _WHERE.sub("", str(error)).strip()[:300] or type(error).__name__


def _check_sizes(index_factory: str, dim: int, path: str) -> None:
    numbers = [int(number) for number in re.findall(r"\d+", index_factory)]
    lists = [int(number) for number in re.findall(r"IVF(\d+)", index_factory)]
    neighbours = [int(number) for number in re.findall(r"HNSW(\d+)", index_factory)]
    if max(lists, default=1) < 1 or max([*numbers, *lists], default=0) > MAX_LISTS:
        raise InvalidField(path, f"has a number out of 1..{MAX_LISTS}")
    if max(neighbours, default=2) > MAX_NEIGHBOURS:
        raise InvalidField(path, f"has over {MAX_NEIGHBOURS} neighbours of a row")
    for bits in _code_bits(index_factory):
        if 4 * dim * 2**bits > MAX_CODEBOOK_BYTES:
            raise InvalidField(path, f"has codes of {bits} bits, which is too many for dim {dim}")


@dataclass(frozen=True, slots=True)
class Sample:
    """Queries with what exact search finds for them."""

    queries: FloatMatrix
    own_rows: RowNumbers
    """(m,): the row that each query is, which no hit may be; -1 for queries that are none."""
    nearest: RowNumbers
    """(m, 10): the rows to be found; -1 where there are fewer."""
    furthest: FloatVector
    """(m,): score of the last of them where the next row is as near, else NaN: of copies of one
    vector any will do."""
    take: Callable[[RowNumbers], FloatMatrix]
    """Returns the vectors of rows."""


def sample_of(
    queries: FloatMatrix,
    own_rows: RowNumbers,
    nearest: RowNumbers,
    scores: FloatMatrix,
    take: Callable[[RowNumbers], FloatMatrix],
) -> Sample:
    """Return a sample of what exact search finds: 12 rows of each query, with their scores."""
    order = np.argsort(nearest == own_rows[:, None], axis=1, kind="stable")
    others = np.take_along_axis(np.where(nearest < 0, -np.inf, scores), order, axis=1)
    furthest = np.full(len(queries), np.nan, np.float32)
    if others.shape[1] > MEASURED_LIMIT:
        last, following = others[:, MEASURED_LIMIT - 1], others[:, MEASURED_LIMIT]
        furthest = np.where(np.isfinite(following) & (following >= last - TIE), last, np.nan)
    return Sample(queries, own_rows, without_own(nearest, own_rows), furthest, take)


@dataclass(frozen=True, slots=True)
class Tuned:
    """How hard a structure looks, and the recall that this gives."""

    effort: int
    depth: int
    recall: float


def recalls_of(structure: Structure, sample: Sample, effort: int) -> NDArray[np.float64]:
    """Return the share of its nearest rows that a structure finds for each query (m,)."""
    fetched = min(MEASURED_LIMIT + 1, int(structure.index.ntotal))
    _, rows = structure.search(sample.queries, fetched, effort=effort)
    nearest = without_own(rows, sample.own_rows)
    hits = (nearest[:, :, None] == sample.nearest[:, None, :]).any(axis=2) & (nearest >= 0)
    for query in np.flatnonzero(~np.isnan(sample.furthest)).tolist():
        found = np.flatnonzero(nearest[query] >= 0)
        near = sample.take(nearest[query, found]) @ sample.queries[query]
        hits[query, found] |= near >= sample.furthest[query] - TIE
    wanted = np.count_nonzero(sample.nearest >= 0, axis=1)
    shares: NDArray[np.float64] = hits.sum(axis=1) / np.maximum(1, wanted)
    return shares


def without_own(rows: RowNumbers, own_rows: RowNumbers) -> RowNumbers:
    """Return the first 10 of each query's rows other than its own."""
    order = np.argsort(rows == own_rows[:, None], axis=1, kind="stable")[:, :MEASURED_LIMIT]
    kept = np.take_along_axis(rows, order, axis=1)
    return np.where(kept == own_rows[:, None], -1, kept)


def tune(structure: Structure, sample: Sample, recall_target: float) -> Tuned:
    """Find the least effort with which queries other than the sample's reach the target, too.

    Where no effort is enough, more rows are scored anew; the recall returned is what was measured.
    Where fewer make up for a little more effort, fewer are.
    """
    if not structure.is_refined:
        return _tune_effort(structure, sample, recall_target, _efforts(structure))[0]
    structure.set_depth(MIN_DEPTH)
    found, enough = _tune_effort(structure, sample, recall_target, _efforts(structure))
    while not enough and structure.depth < MAX_DEPTH:
        structure.set_depth(2 * structure.depth)
        found, enough = _tune_effort(structure, sample, recall_target, _efforts(structure))
    if enough and found.depth == MIN_DEPTH:
        found = _with_less_depth(structure, sample, recall_target, found)
    structure.set_depth(found.depth)
    return found


def _with_less_depth(
    structure: Structure, sample: Sample, recall_target: float, found: Tuned
) -> Tuned:
    """Return the cheapest of what reaches the target with less depth, or `found`."""
    efforts = [one for one in _efforts(structure) if found.effort <= one <= 2 * found.effort]
    best = found
    for depth in LESS_DEPTHS:
        structure.set_depth(depth)
        other, enough = _tune_effort(structure, sample, recall_target, efforts)
        if enough and _cost(structure, other) < _cost(structure, best):
            best = other
    return best


def _cost(structure: Structure, tuned: Tuned) -> float:
    """Return what a search costs, in codes scanned."""
    return structure.codes_scanned(tuned.effort) + CODES_A_ROW * tuned.depth


def _tune_effort(
    structure: Structure, sample: Sample, recall_target: float, efforts: Sequence[int]
) -> tuple[Tuned, bool]:
    """Return the least effort that is enough, or the greatest, and whether it is enough."""
    low, high = 0, len(efforts) - 1
    while low < high:
        middle = (low + high) // 2
        shares = recalls_of(structure, sample, efforts[middle])
        low, high = (low, middle) if _reach(shares, recall_target) else (middle + 1, high)
    shares = recalls_of(structure, sample, efforts[low])
    tuned = Tuned(efforts[low], structure.depth, float(shares.mean()))
    return tuned, _reach(shares, recall_target)


def _reach(shares: NDArray[np.float64], recall_target: float) -> bool:
    error = shares.std() / math.sqrt(len(shares))
    return bool(shares.mean() - DEVIATIONS * error >= recall_target)


def _efforts(structure: Structure) -> Sequence[int]:
    """Return the efforts to try, rising, eight an octave."""
    if structure.kind is Kind.LISTS:
        lowest, highest = 1, structure.max_effort
    elif structure.kind is Kind.GRAPH:
        lowest, highest = 16, MAX_GRAPH_EFFORT
    else:
        return [0]
    octaves = np.arange(8 * math.log2(highest / lowest) + 1) / 8
    return sorted({*(math.ceil(lowest * 2**octave) for octave in octaves.tolist()), highest})
