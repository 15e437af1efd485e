"""A watched search: what it saw, so that it can be repeated exactly, and what it found.

A view changes all the time, by rows that come and rows that die. What a search saw is kept as the
blocks that were there, how long they were and which of their rows lived; whether nothing changed
until the search had ended is asked afterwards, as the reader of a seqlock does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mmesh.content import Modality
from mmesh.filters import Filter
from mmesh.vectors import FloatMatrix
from services.index.segments.bitmap import Bits
from services.index.view.view import Block, Found, View


class SeenBlock(NamedTuple):
    """Rows as a search found them."""

    block: Block
    rows: int
    """How many there were, dead ones included."""
    alive: Bits
    """A copy."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The candidates of one modality as a search found them."""

    blocks: tuple[SeenBlock, ...]
    changes: int
    """See `View.changes`."""

    @classmethod
    def of(cls, view: View, modality: Modality) -> Seen:
        """Return what a search that begins now sees, unless `is_what` says otherwise at its end."""
        changes = view.changes
        blocks = _filled(view, modality)
        return cls(tuple(SeenBlock(one, len(one), _alive(one)) for one in blocks), changes)

    def is_what(self, view: View, modality: Modality) -> bool:
        """Tell whether the view has this state still, and had it ever since."""
        if self.changes % 2 or view.changes != self.changes:
            return False
        now = _filled(view, modality)
        return len(now) == len(self.blocks) and all(
            one is seen.block and len(one) == seen.rows
            for one, seen in zip(now, self.blocks, strict=True)
        )


def _filled(view: View, modality: Modality) -> list[Block]:
    """Return the blocks with rows; a delta has none for a moment after it was made."""
    return [one for one in view.partitions[modality].blocks if len(one)]


def _alive(block: Block) -> Bits:
    return np.frombuffer(block.alive_bits(), np.uint8)


@dataclass(slots=True)
class Watch:
    """One query of a search, in one of its modalities; `begin` and `end` are called around it."""

    view: View
    modality: Modality
    query: FloatMatrix
    """(1, dim)."""
    limit: int
    condition: Filter | None
    place: tuple[int, int]
    """Of the query among those of the search, and of the modality."""
    tell: Callable[[Watch], None]
    """Called on the event loop after the search."""
    seen: Seen | None = field(default=None, init=False)
    """What the search saw; None when that changed meanwhile."""
    hits: Sequence[str] = field(default=(), init=False)
    """Ids, best first."""
    error: Exception | None = field(default=None, init=False)
    """Why the search could not be watched; it was answered all the same."""

    def begin(self) -> None:
        """Note what the search, which comes next on this thread, will see."""
        try:
            self.seen = Seen.of(self.view, self.modality)
        except Exception as error:  # whatever it is, users shall not hear of it
            self.error = error

    def end(self, lists: Sequence[Sequence[Found]]) -> None:
        """Note what the search found, by query and modality."""
        try:
            query, modality = self.place
            self.hits = lists[query][modality].ids
            if self.seen is not None and not self.seen.is_what(self.view, self.modality):
                self.seen = None
        except Exception as error:  # see above
            self.error = error

    def close(self) -> None:
        """Tell who watches that the search has been answered."""
        self.tell(self)
