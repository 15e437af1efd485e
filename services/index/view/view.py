"""A shard's view of one collection: what the log says, ready to be searched.

The view is disposable and knows the sequence that it reflects. One thread changes it (it applies
rows and puts new segments in place of old ones); searches run beside it on whatever tuple of blocks
they find. A seqlock keeps a candidate that is replaced meanwhile from being found twice, or not.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmesh.content import Modality
from mmesh.filters import Filter
from mmesh.values.tokens import Token
from mmesh.vectors import FloatMatrix
from services.index.log.rows import Rows
from services.index.point import BEGINNING, Point
from services.index.segments import bitmap
from services.index.segments.delta import Delta
from services.index.segments.exact import Nearest
from services.index.segments.ids import hashes_of
from services.index.segments.segment import Segment
from services.index.view import reproducible
from services.index.view.history import History
from services.index.view.recent_queries import RecentQueries

RowNumbers = NDArray[np.int64]
TRIES = 3
"""Searches that a change spoiled before one keeps changes out."""
REPLACED_AT_A_TIME = 512
"""Rows in one change: searches may have to wait for its end, about a millisecond."""


Block = Segment | Delta
"""Rows that can be searched."""


class Found(NamedTuple):
    """The candidates nearest to one query, best first."""

    ids: Sequence[str]
    scores: NDArray[np.float32]
    attributes: Sequence[str]
    """As JSON; see `rows.attributes_to_json`."""


class Partition:
    """The candidates of one modality: sealed segments, full deltas, and the growing delta."""

    def __init__(self, dim: int, delta_rows: int, segments: Sequence[Segment] = ()) -> None:
        self._dim, self._delta_rows = dim, delta_rows
        self.segments: tuple[Segment, ...] = tuple(segments)
        self._full: tuple[Delta, ...] = ()
        self._delta: Delta | None = None
        self.blocks: tuple[Block, ...] = self.segments
        """What a search goes through; it takes the tuple once."""
        self.recent = RecentQueries(dim)

    @property
    def full_deltas(self) -> tuple[Delta, ...]:
        """Deltas that wait to be sealed."""
        return self._full

    def append(
        self,
        ids: Sequence[str],
        hashes: NDArray[np.uint64],
        attributes: Sequence[str],
        vectors: FloatMatrix,
    ) -> None:
        """Add rows to the delta, and to further ones as they fill up."""
        start = 0
        while start < len(ids):
            delta = self._growing_delta()
            end = min(len(ids), start + self._delta_rows - len(delta))
            part = slice(start, end)
            delta.append_many(ids[part], hashes[part], attributes[part], vectors[part])
            start = end

    def _growing_delta(self) -> Delta:
        if self._delta is not None and self._delta.is_full:
            self.seal_delta()
        if self._delta is None:
            self._delta = Delta(self._dim, self._delta_rows)
            self._publish()
        return self._delta

    def seal_delta(self) -> None:
        """Let the growing delta take no more rows, so that it can become a segment."""
        if self._delta is not None and len(self._delta):
            self._full = (*self._full, self._delta)
            self._delta = None
            self._publish()

    def replace(
        self, sources: Sequence[Block], kept: Sequence[RowNumbers], new: Segment | None
    ) -> None:
        """Put `new`, made from the rows `kept` of `sources`, in their place; None: of no rows.

        Rows that died since then are dead in `new` too.
        """
        start = 0
        for source, rows in zip(sources, kept, strict=True):
            if new is not None:
                died = np.flatnonzero(~alive_rows(source)[rows])
                new.kill(start + died)
            start += len(rows)
        gone = set(map(id, sources))
        added = () if new is None else (new,)
        self.segments = (*(s for s in self.segments if id(s) not in gone), *added)
        self._full = tuple(d for d in self._full if id(d) not in gone)
        self._publish()

    def _publish(self) -> None:
        growing = () if self._delta is None else (self._delta,)
        self.blocks = (*self.segments, *self._full, *growing)

    @property
    def living(self) -> int:
        """Candidates that can be found."""
        return sum(len(block) - block.dead for block in self.blocks)

    def search(
        self,
        queries: FloatMatrix,
        limit: int,
        condition: Filter | None,
        *,
        is_reproducible: bool = False,
    ) -> list[Found]:
        """Return the `limit` nearest living candidates of each query (m, dim)."""
        self.recent.note(queries)
        blocks = [block for block in self.blocks if len(block)]
        if not blocks:
            return [_NOTHING for _ in queries]
        if is_reproducible:
            answers = [reproducible.search(block, queries, limit, condition) for block in blocks]
            return _in_order(blocks, answers, limit)
        answers = [block.search(queries, limit, condition) for block in blocks]
        if len(answers) == 1:
            scores, rows = answers[0]
            ids, attributes = blocks[0].ids(rows.ravel()), blocks[0].attributes(rows.ravel())
            return _by_query(scores, rows, ids, attributes)
        return _joined(blocks, answers, limit)


_NOTHING = Found((), np.empty(0, np.float32), ())


def _by_query(
    scores: FloatMatrix, rows: RowNumbers, ids: Sequence[str], attributes: Sequence[str]
) -> list[Found]:
    """Return the hits of each query of what is given for all: rows (m, k), -1 in the end."""
    m, width = rows.shape
    full = not width or rows[:, -1].min() >= 0
    counts = [width] * m if full else np.count_nonzero(rows >= 0, axis=1).tolist()
    return [
        Found(
            ids[number * width : number * width + count],
            scores[number, :count],
            attributes[number * width : number * width + count],
        )
        for number, count in enumerate(counts)
    ]


def _in_order(blocks: Sequence[Block], answers: Sequence[Nearest], limit: int) -> list[Found]:
    """Return the best hits of each query among those of all blocks; equal scores by id."""
    found = _joined(blocks, answers, limit * len(blocks))
    return found if len(blocks) == 1 else [_first(one, limit) for one in found]


def _first(found: Found, limit: int) -> Found:
    order = sorted(range(len(found.ids)), key=lambda n: (-found.scores[n], found.ids[n]))[:limit]
    return Found(
        [found.ids[n] for n in order], found.scores[order], [found.attributes[n] for n in order]
    )


def _joined(
    blocks: Sequence[Block], answers: Sequence[tuple[FloatMatrix, RowNumbers]], limit: int
) -> list[Found]:
    """Return the best hits of each query among those of all blocks."""
    scores = np.hstack([scores for scores, _ in answers])
    rows = np.hstack([rows for _, rows in answers])
    scores[rows < 0] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    owners = np.repeat(np.arange(len(blocks)), [rows.shape[1] for _, rows in answers])[order]
    order, owners = order[:, :limit], owners[:, :limit]
    scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    ids, attributes = np.full(rows.shape, "", object), np.full(rows.shape, "", object)
    for number, block in enumerate(blocks):
        own = (owners == number) & (rows >= 0)
        if own.any():
            ids[own] = block.ids(rows[own])
            attributes[own] = block.attributes(rows[own])
    return _by_query(scores, rows, ids.ravel().tolist(), attributes.ravel().tolist())


def find_in(block: Block, hashes: NDArray[np.uint64], ids: Sequence[str]) -> RowNumbers:
    """Return the row of each id, -1 where it is absent."""
    if isinstance(block, Segment):
        return block.find(hashes, ids)
    return np.fromiter(map(block.find, ids), np.int64, len(ids))


def alive_rows(block: Block) -> NDArray[np.bool_]:
    """Return which rows of a block are alive, as booleans (n,)."""
    packed = np.frombuffer(block.alive_bits(), np.uint8)
    return np.unpackbits(packed, bitorder="little")[: len(block)].astype(np.bool_)


def _is_alive(block: Block, rows: RowNumbers) -> NDArray[np.bool_]:
    """Return which rows, -1 excepted, are alive."""
    return bitmap.has(np.frombuffer(block.alive_bits(), np.uint8), rows)


def living_rows(block: Block) -> RowNumbers:
    """Return the numbers of the rows that are alive, rising."""
    return np.flatnonzero(alive_rows(block))


@dataclass(eq=False)
class View:
    """One collection as this shard sees it, up to a place in its history."""

    name: str
    epoch: str
    dim: int
    delta_rows: int
    at: Point = BEGINNING
    """What it reflects: all writes of its history up to here."""
    segments: Mapping[Modality, Sequence[Segment]] = field(default_factory=dict)
    """What a snapshot brought, if the view began with one."""
    whole: int = 0
    """All writes up to here are reflected, or later ones in their place. Of those between here and
    `at`, a candidate is missing that a write after `at` has replaced: the log has only the last."""
    purged: int = 0
    """Deletions up to here are none of a view that began with nothing when the log was there."""
    stored: int = 0
    """The sequence that its newest snapshot reflects; 0 without one."""
    partitions: dict[Modality, Partition] = field(init=False)
    changed_at: float = field(default_factory=time.monotonic)
    """When rows were applied last, on the monotonic clock."""
    cost_s: float = 0.0
    """Seconds that one query without a filter took lately; 0 until one was asked."""

    def __post_init__(self) -> None:
        """Make a partition for each modality."""
        self.history = History()
        self._changing = threading.Lock()
        self._changes = 0
        """Rises when a change begins and when it ends, so it is odd meanwhile."""
        self.partitions = {
            m: Partition(self.dim, self.delta_rows, self.segments.get(m, ())) for m in Modality
        }

    @property
    def changes(self) -> int:
        """Rises when rows are about to be replaced, and when that is done: odd meanwhile."""
        return self._changes

    @property
    def applied(self) -> int:
        """The number of the last write that it reflects."""
        return self.at.seq

    @property
    def token(self) -> str:
        """Names the state that the view reflects."""
        return str(Token(self.epoch, *self.at))

    def lacks_deletions(self, purged: int) -> bool:
        """Tell whether the log, purged so far, cannot bring this view up to date any more."""
        return purged > max(self.applied, self.purged)

    def apply(self, rows: Rows, through: int) -> None:
        """Apply rows in order of sequence; afterwards the view reflects `through`."""
        hashes = hashes_of(rows.ids)
        owners, places = self._find(rows.ids, hashes)
        if (places < 0).all():  # nothing is replaced, so searches beside this miss nothing
            self._append(rows, hashes, np.arange(len(rows)))
        else:
            for start in range(0, len(rows), REPLACED_AT_A_TIME):
                chosen = np.arange(start, min(len(rows), start + REPLACED_AT_A_TIME))
                self._replace(rows, hashes, chosen, owners, places)
        if len(rows):
            self.changed_at = time.monotonic()
        self.at = Point(through, rows.commits[-1].stamp if rows.commits else self.at.stamp)

    def _find(
        self, ids: Sequence[str], hashes: NDArray[np.uint64]
    ) -> tuple[NDArray[np.object_], RowNumbers]:
        """Return the block that has each id now, and its row there; None and -1 where none has."""
        owners, places = np.full(len(ids), None, object), np.full(len(ids), -1, np.int64)
        for partition in self.partitions.values():
            for block in partition.blocks:
                rows = find_in(block, hashes, ids)
                rows = np.where(_is_alive(block, rows), rows, -1)
                owners[rows >= 0] = block
                places = np.maximum(places, rows)
        return owners, places

    def _append(self, rows: Rows, hashes: NDArray[np.uint64], chosen: RowNumbers) -> None:
        for modality, partition in self.partitions.items():
            own = [
                n for n in chosen.tolist() if rows.modalities[n] is modality and not rows.deleted[n]
            ]
            if own:
                ids, attributes = [rows.ids[n] for n in own], [rows.attributes[n] for n in own]
                partition.append(ids, hashes[own], attributes, rows.vectors[own])

    def _replace(
        self,
        rows: Rows,
        hashes: NDArray[np.uint64],
        chosen: RowNumbers,
        owners: NDArray[np.object_],
        places: RowNumbers,
    ) -> None:
        """Append the chosen rows and kill those of the same ids, as one change for searches."""
        with self._changing:
            self._changes += 1
            try:
                self._append(rows, hashes, chosen)
                for block in {id(b): b for b in owners[chosen] if b is not None}.values():
                    block.kill(places[chosen[owners[chosen] == block]])
            finally:
                self._changes += 1

    def gains_from_batches(self, modalities: Iterable[Modality]) -> bool:
        """Tell whether several queries cost less in one call than one by one."""
        return all(s.gains_from_batches for m in modalities for s in self.partitions[m].segments)

    def counts(self) -> dict[Modality, int]:
        """Return the living candidates by modality."""
        return {modality: partition.living for modality, partition in self.partitions.items()}

    def memory(self) -> Counter[str]:
        """Return bytes by part."""
        total: Counter[str] = Counter()
        for partition in self.partitions.values():
            for block in partition.blocks:
                total.update(block.memory())
        return total

    def search(
        self,
        queries: FloatMatrix,
        modalities: Sequence[Modality],
        limit: int,
        condition: Filter | None,
        is_reproducible: bool = False,
    ) -> list[list[Found]]:
        """Return hits by query and modality: `result[q][m]`; see `reproducible`.

        The reader of a seqlock: a search beside a change begins anew after it, and in the end keeps
        changes out.
        """
        for _ in range(TRIES):
            found = self.try_search(queries, modalities, limit, condition, is_reproducible)
            if found is not None:
                return found
            with self._changing:
                pass
        with self._changing:
            found = self.try_search(queries, modalities, limit, condition, is_reproducible)
        assert found is not None, "nothing else changes a view while that is locked"
        return found

    def try_search(
        self,
        queries: FloatMatrix,
        modalities: Sequence[Modality],
        limit: int,
        condition: Filter | None,
        is_reproducible: bool = False,
    ) -> list[list[Found]] | None:
        """Search as `search` does, but return None beside a change instead of waiting for its end.

        A candidate that is replaced meanwhile might be found in neither of its places, or in both.
        """
        changes = self._changes
        if changes % 2:
            return None
        lists = [
            self.partitions[m].search(queries, limit, condition, is_reproducible=is_reproducible)
            for m in modalities
        ]
        found = [list(of_query) for of_query in zip(*lists, strict=True)]
        return found if changes == self._changes else None
