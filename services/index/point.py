"""A place in one history of a collection, which a sequence number alone does not name."""

from __future__ import annotations

from typing import NamedTuple


class Point(NamedTuple):
    """The state of a collection after a write."""

    seq: int
    """Number of the write; 0 before the first."""
    stamp: str
    """Random, of the commit that made the write, so that no other history of the collection has it;
    empty before the first, and where an earlier release wrote."""


BEGINNING = Point(0, "")
