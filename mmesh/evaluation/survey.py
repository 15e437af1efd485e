"""One pass over a data set before anything is sent: what it holds, and what is wrong with it."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmesh.content import Modality
from mmesh.evaluation.datasets.dataset import (
    Broken,
    Dataset,
    DatasetError,
    Judgement,
    PoolRow,
    Query,
    Task,
)

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Survey:
    """What a data set holds."""

    rows: int
    """Rows of the pool, broken ones too."""
    total: int
    """Candidates with different ids."""
    candidates: dict[Modality, int]
    """Candidates with different ids by modality, before it is known which of them are taken."""
    text_bytes: int
    pools: frozenset[str]
    queries: dict[str, int]
    """Queries by task."""
    twice: frozenset[int]
    """Hashes of ids that the pool holds twice; the first row of each counts."""
    query_digest: str
    """SHA-256 of all that is asked with, so that answers are not taken for those of others."""
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
    """Read pool, queries and judgements once; 8 bytes of each candidate are remembered.

    Raises:
        DatasetError: a file cannot be read to its end, two queries of a task have one id, or an id
            or a query is no Unicode.
    """
    hashes, counts, pools = array("Q"), Counter[Modality](), set[str]()
    rows = text_bytes = 0
    for row in dataset.pool():
        rows += 1
        if isinstance(row, Broken):
            continue
        _check_text(row.where, row.id, *row.pools)
        hashes.append(hash_of(row.id))
        counts[modality_of(row)] += 1
        text_bytes += len(row.text)
        pools.update(row.pools)
    ids = np.frombuffer(hashes, np.uint64)
    ids.sort()  # in place: a copy would be most of the memory
    again = ids[1:][ids[1:] == ids[:-1]]
    twice = frozenset(int(one) for one in again)
    queries, query_digest = _survey_queries(dataset)
    for task in dataset.tasks:
        if task.judged:
            _check_judgements(dataset.judgements(task))
    counts.subtract(_modalities_of_repeated(dataset, twice))
    total = len(ids) - len(again)
    return Survey(
        rows, total, dict(counts), text_bytes, frozenset(pools), queries, twice, query_digest, ids
    )


def _modalities_of_repeated(dataset: Dataset, twice: frozenset[int]) -> Iterator[Modality]:
    """Yield the modality of each row whose id came before, in another pass if there are any."""
    seen = set[int]()
    for row in dataset.pool() if twice else ():
        if isinstance(row, Broken) or (key := hash_of(row.id)) not in twice:
            continue
        if key in seen:
            yield modality_of(row)
        seen.add(key)


def modality_of(row: PoolRow | Query) -> Modality:
    """Return what a row is made of."""
    if row.image is None:
        return Modality.TEXT
    return Modality.IMAGE_TEXT if row.text else Modality.IMAGE


def _survey_queries(dataset: Dataset) -> tuple[dict[str, int], str]:
    """Return the number of queries of each task, and the digest of them all.

    Raises:
        DatasetError: two queries of a task have one id, or one is no Unicode.
    """
    sha, counts = hashlib.sha256(), dict[str, int]()
    root = dataset.pool_files[0].parent
    for task in dataset.tasks:
        seen = set[int]()
        for query in dataset.queries(task):
            if isinstance(query, Broken):
                continue
            _check_text(query.where, task.pool, query.id, query.text, query.instruction)
            _check_text(query.where, *query.excluded, *query.among)
            if (key := hash_of(query.id)) in seen:
                problem = f"has the query id {query.id!r}, which came before in {task.name!r}"
                raise DatasetError(f"{query.where} {problem}; answers are told apart by it")
            seen.add(key)
            sha.update(_line_of(task, query, root))
        counts[task.name] = len(seen)
    return counts, sha.hexdigest()


def _check_judgements(rows: Iterable[Judgement | Broken]) -> None:
    """Read the judgements to their end: what is wrong is told now, not after the searches."""
    for one in rows:
        if isinstance(one, Judgement):
            _check_text(one.where, one.query, one.candidate)


def _check_text(where: str, *texts: str) -> None:
    """Refuse what neither a run file nor a call can hold.

    Raises:
        DatasetError: a text holds a lone surrogate, which JSON can spell.
    """
    together = "".join(texts)
    try:
        together.encode()
    except UnicodeEncodeError as error:
        half = together[error.start]
        raise DatasetError(f"{where} holds the lone surrogate {half!r}, no Unicode") from None


def _line_of(task: Task, query: Query, root: Path) -> bytes:
    """Return all that changes the answer to a query, wherever the data lie.

    A picture goes by its name and its size in bytes: all pictures would take long to read.
    """
    picture = os.path.relpath(query.image, root) if query.image else ""
    size = 0
    with suppress(OSError):  # what is not there is found out when it is searched for
        size = query.image.stat().st_size if query.image and query.image.is_file() else 0
    wanted = query.wanted.value if query.wanted else ""
    values = [task.name, query.id, query.text, picture, size, query.instruction, wanted]
    return (json.dumps([*values, query.excluded, query.among]) + "\n").encode()
