"""A shard's view of one collection: what the log says, ready to be searched.

The view is disposable and knows the sequence that it reflects. One thread applies rows; searches
run beside it on whatever tuple of blocks they find.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmesh.content import Attributes, Modality
from mmesh.filters import Filter
from mmesh.vectors import FloatMatrix
from services.index.rows import CandidateRow
from services.index.segment import Block, Delta, FlatSegment, seal


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate near a query."""

    id: str
    score: float
    attributes: Attributes


class Partition:
    """The candidates of one modality: sealed segments and a delta."""

    def __init__(self, dim: int, seal_rows: int) -> None:
        self._dim, self._seal_rows = dim, seal_rows
        self._delta = Delta(dim, seal_rows)
        self.blocks: tuple[Block, ...] = (self._delta,)
        """Sealed segments, then the delta; a search takes the tuple once."""

    def append(self, row: CandidateRow, vector: FloatMatrix) -> tuple[Block, int]:
        """Add a row to the delta and return where it is."""
        return self._delta, self._delta.append(row.id, vector, row.attributes)

    def seal_full_delta(self) -> FlatSegment | None:
        """Turn a full delta into a segment, merged with segments of its size; return it."""
        if not self._delta.is_full:
            return None
        merged: list[Block] = [self._delta]
        segments = list(self.blocks[:-1])
        while segments and len(segments[-1]) <= 2 * sum(map(len, merged)):
            merged.append(segments.pop())
        new = seal(merged)
        self._delta = Delta(self._dim, self._seal_rows)
        self.blocks = (*segments, new, self._delta)
        return new

    def search(
        self, queries: FloatMatrix, limit: int, condition: Filter | None
    ) -> list[list[Found]]:
        """Return the `limit` nearest living candidates of each query (m, dim), best first."""
        answers: list[list[Found]] = [[] for _ in queries]
        for block in self.blocks:
            if len(block):
                _collect(answers, block, *block.search(queries, limit, condition))
        return [_best(found, limit) for found in answers]


def _collect(
    answers: list[list[Found]], block: Block, scores: FloatMatrix, rows: np.ndarray
) -> None:
    for found, row_scores, row_numbers in zip(answers, scores.tolist(), rows.tolist(), strict=True):
        for score, row in zip(row_scores, row_numbers, strict=True):
            if row >= 0:
                found.append(Found(block.ids[row], score, block.attributes[row]))


def _best(found: list[Found], limit: int) -> list[Found]:
    found.sort(key=lambda hit: (-hit.score, hit.id))
    seen: set[str] = set()  # a row that is being replaced may be found in both places
    unique = [hit for hit in found if not (hit.id in seen or seen.add(hit.id))]  # type: ignore[func-returns-value]  # adds on the way
    return unique[:limit]


@dataclass
class View:
    """One collection as this shard sees it, up to sequence `applied`."""

    name: str
    epoch: str
    dim: int
    seal_rows: int
    applied: int = 0
    partitions: dict[Modality, Partition] = field(init=False)

    def __post_init__(self) -> None:
        """Make an empty partition for each modality."""
        self.partitions = {m: Partition(self.dim, self.seal_rows) for m in Modality}
        self._places: dict[str, tuple[Block, int]] = {}

    def apply(self, rows: Sequence[CandidateRow], through: int) -> None:
        """Apply rows in order of sequence; afterwards the view reflects `through`."""
        for row in rows:
            if row.deleted:
                self._kill(self._places.pop(row.id, None))
            else:
                self._put(row)
        self.applied = through

    def _put(self, row: CandidateRow) -> None:
        partition = self.partitions[row.modality]
        sealed = partition.seal_full_delta()
        if sealed is not None:
            self._places.update((c, (sealed, n)) for n, c in enumerate(sealed.ids))
        old = self._places.get(row.id)
        self._places[row.id] = partition.append(row, np.frombuffer(row.vector, "<f4"))
        self._kill(old)  # after the new row is there, so that a search never finds neither

    def _kill(self, place: tuple[Block, int] | None) -> None:
        if place is not None:
            block, row = place
            block.alive[row] = False

    def counts(self) -> dict[Modality, int]:
        """Return the living candidates by modality."""
        return {
            modality: sum(int(np.count_nonzero(block.alive)) for block in partition.blocks)
            for modality, partition in self.partitions.items()
        }

    def vector_bytes(self) -> int:
        """Return the bytes of the vectors of all rows, dead ones included."""
        blocks = (block for partition in self.partitions.values() for block in partition.blocks)
        return sum(len(block) for block in blocks) * self.dim * 4

    def search(
        self,
        queries: FloatMatrix,
        modalities: Iterable[Modality],
        limit: int,
        condition: Filter | None,
    ) -> list[list[list[Found]]]:
        """Return hits by query and modality: `result[q][m]`."""
        lists = [self.partitions[m].search(queries, limit, condition) for m in modalities]
        return [list(of_query) for of_query in zip(*lists, strict=True)]
