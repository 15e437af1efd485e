"""One pass over a data set before anything is sent: what it holds, and what is wrong with it."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmesh.content import Modality
from mmesh.evaluation.datasets.dataset import Broken, Dataset, PoolRow, Query

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Survey:
    """What a data set holds."""

    rows: int
    """Rows of the pool, broken ones too."""
    total: int
    """Candidates with different ids."""
    candidates: dict[Modality, int]
    text_bytes: int
    pools: frozenset[str]
    queries: dict[str, int]
    """Queries by task."""
    twice: frozenset[int]
    """Hashes of ids that the pool holds twice; the first row of each counts."""
    _ids: Hashes = field(repr=False)

    def holds(self, candidate: str) -> bool:
        """Tell whether the pool has a candidate of this id."""
        value = np.uint64(hash_of(candidate))
        place = int(np.searchsorted(self._ids, value))
        return place < len(self._ids) and bool(self._ids[place] == value)


def hash_of(candidate: str) -> int:
    """Return 64 bits of an id: 8 bytes to remember it by, whatever the length.

    Among six million ids two share these with a probability of one in a million.
    """
    return int.from_bytes(hashlib.blake2b(candidate.encode(), digest_size=8).digest(), "little")


def survey(dataset: Dataset) -> Survey:
    """Read pool and queries once; 8 bytes of each candidate are remembered.

    Raises:
        DatasetError: a file cannot be read to its end.
    """
    hashes, counts, pools = array("Q"), Counter[Modality](), set[str]()
    rows = text_bytes = 0
    for row in dataset.pool():
        rows += 1
        if isinstance(row, Broken):
            continue
        hashes.append(hash_of(row.id))
        counts[modality_of(row)] += 1
        text_bytes += len(row.text)
        pools.update(row.pools)
    ids = np.frombuffer(hashes, np.uint64)
    ids.sort()  # in place: a copy would be most of the memory
    again = ids[1:][ids[1:] == ids[:-1]]
    twice = frozenset(int(one) for one in again)
    queries = {task.name: _count(dataset.queries(task)) for task in dataset.tasks}
    total = len(ids) - len(again)
    return Survey(rows, total, dict(counts), text_bytes, frozenset(pools), queries, twice, ids)


def modality_of(row: PoolRow | Query) -> Modality:
    """Return what a row is made of."""
    if row.image is None:
        return Modality.TEXT
    return Modality.IMAGE_TEXT if row.text else Modality.IMAGE


def _count(rows: Any) -> int:
    return sum(1 for row in rows if isinstance(row, Query))
