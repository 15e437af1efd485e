"""What a collection may hold and be asked: its own limits, within those of the API."""

from __future__ import annotations

from collections.abc import Sequence

from mmesh.candidates import Candidate
from mmesh.collections import CollectionLimits, check_within
from mmesh.errors import InvalidField, InvalidFilter
from mmesh.filters import AllOf, AnyOf, Filter, Not
from mmesh.search import MAX_LIMIT


def check_candidates(candidates: Sequence[Candidate], limits: CollectionLimits) -> None:
    """Raise `InvalidField` for the first candidate that is over a limit."""
    if not (limits.max_attributes or limits.max_candidate_bytes):
        return
    for number, candidate in enumerate(candidates):
        check_within(candidate, limits, f"candidates[{number}]")


def check_limit(limit: int, limits: CollectionLimits) -> None:
    """Raise `InvalidField` unless 1 <= limit <= what the collection allows."""
    most = limits.max_limit or MAX_LIMIT
    if not 1 <= limit <= most:
        raise InvalidField("limit", f"is {limit}; 1 to {most} are allowed")


def check_depth(condition: Filter, limits: CollectionLimits) -> None:
    """Raise `InvalidFilter` when the filter is deeper than the collection allows."""
    most, depth = limits.max_filter_depth, _depth(condition)
    if most and depth > most:
        raise InvalidFilter("filter", f"is nested {depth} deep; this collection allows {most}")


def _depth(condition: Filter) -> int:
    if isinstance(condition, AllOf | AnyOf):
        return 1 + max(map(_depth, condition.filters), default=0)
    return 1 + _depth(condition.filter) if isinstance(condition, Not) else 1
