"""What a collection may hold and be asked: its own limits, within those of the API."""

from __future__ import annotations

from collections.abc import Sequence

from mmesh.candidates import Candidate
from mmesh.collections import CollectionLimits
from mmesh.errors import InvalidField, InvalidFilter
from mmesh.filters import AllOf, AnyOf, Filter, Not
from mmesh.search import MAX_LIMIT


def check_candidates(candidates: Sequence[Candidate], limits: CollectionLimits) -> None:
    """Raise `InvalidField` for the first candidate that is over a limit."""
    if not (limits.max_attributes or limits.max_candidate_bytes):
        return
    for number, candidate in enumerate(candidates):
        path, count = f"candidates[{number}]", len(candidate.attributes)
        if limits.max_attributes and count > limits.max_attributes:
            problem = f"has {count} entries; this collection allows {limits.max_attributes}"
            raise InvalidField(f"{path}.attributes", problem)
        size = _size(candidate)
        if limits.max_candidate_bytes and size > limits.max_candidate_bytes:
            problem = f"has {size} bytes; this collection allows {limits.max_candidate_bytes}"
            raise InvalidField(path, problem)


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


def _size(candidate: Candidate) -> int:
    """Return the bytes of id, parts and attributes."""
    content = sum(
        len(part.encode()) if isinstance(part, str) else len(part.data)
        for part in candidate.content.parts
    )
    attributes = sum(
        len(name) + sum(len(str(v)) for v in (value if isinstance(value, tuple) else (value,)))
        for name, value in candidate.attributes.items()
    )
    return len(candidate.id.encode()) + content + attributes
