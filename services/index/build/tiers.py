"""Which blocks of a partition are merged next: a policy on sizes, without the blocks themselves.

Merging by size tiers builds each row about log2(n / delta) times; see docs/adr/0010.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RATIO = 2
"""A segment joins a merge of at least 1 / RATIO of its own rows."""
DEAD_SHARE = 0.2
"""Share of dead rows above which a segment is built anew by itself."""
DEAD_ROWS = 1000
QUIET_SHARE = 0.005
"""Share of the largest segment's rows that may lie beside it when nothing is written any more."""
QUIET_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows of a partition's blocks, dead ones included."""

    segments: Sequence[int]
    dead: Sequence[int]
    """Dead rows of the segments."""
    full_deltas: int
    """Rows of all full deltas together."""
    growing_delta: int


@dataclass(frozen=True, slots=True)
class Merge:
    """What to merge: segments by number, all full deltas, and perhaps the growing delta."""

    segments: tuple[int, ...]
    deltas: bool
    growing: bool


def next_merge(sizes: Sizes, *, is_quiet: bool) -> Merge | None:
    """Return the merge that is due, or None.

    Full deltas are merged at once, with the segments that are not much larger than what is merged.
    When nothing was written for a while, all that lies beside the largest segment is merged into
    it, unless it is too little to be worth the build.
    """
    if is_quiet and _lies_beside(sizes) > _tolerated(sizes):
        return Merge(tuple(range(len(sizes.segments))), deltas=True, growing=True)
    if sizes.full_deltas:
        return Merge(_tier(sizes), deltas=True, growing=False)
    for number, (rows, dead) in enumerate(zip(sizes.segments, sizes.dead, strict=True)):
        if dead > max(DEAD_ROWS, DEAD_SHARE * rows):
            return Merge((number,), deltas=False, growing=False)
    return None


def whole_merge(sizes: Sizes) -> Merge | None:
    """Return the merge of everything into one new segment; None when there is nothing."""
    if not (sizes.segments or sizes.full_deltas or sizes.growing_delta):
        return None
    return Merge(tuple(range(len(sizes.segments))), deltas=True, growing=True)


def _lies_beside(sizes: Sizes) -> int:
    largest = max(sizes.segments, default=0)
    return sum(sizes.segments) - largest + sizes.full_deltas + sizes.growing_delta


def _tolerated(sizes: Sizes) -> float:
    return max(QUIET_ROWS, QUIET_SHARE * max(sizes.segments, default=0))


def _tier(sizes: Sizes) -> tuple[int, ...]:
    merged, chosen = sizes.full_deltas, []
    for number in sorted(range(len(sizes.segments)), key=lambda n: sizes.segments[n]):
        if sizes.segments[number] > RATIO * merged:
            break
        chosen.append(number)
        merged += sizes.segments[number]
    return tuple(chosen)
