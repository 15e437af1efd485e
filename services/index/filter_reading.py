"""What a filter means for a collection: its values typed, and the attributes that are unknown.

Types come from the collection's row as it was last seen. Before a filter is refused for its types,
or an attribute called unknown, the log is asked: the row may be older than what is searched.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from mmesh.errors import InvalidFilter, LogUnavailable
from mmesh.filters import Filter
from services.index.log.attributes import typed, unknown_in
from services.index.log.rows import CollectionRow


@dataclass(frozen=True, slots=True)
class Reading:
    """A filter as it is to be searched with."""

    condition: Filter | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Attributes that no candidate has, each with one like it, or an empty string."""


async def read_filter(
    condition: Filter, row: CollectionRow, newest: Callable[[], Awaitable[CollectionRow]]
) -> Reading:
    """Return what the filter means; `newest` reads the row from the log.

    Raises:
        InvalidFilter: it compares an attribute with a value of another type.
    """
    trouble: InvalidFilter | None = None
    try:
        reading = _read(condition, row)
        if not reading.unknown:
            return reading
    except InvalidFilter as error:
        trouble = error
    try:
        return _read(condition, await newest())
    except LogUnavailable:
        if trouble is not None:
            raise trouble from None
        return reading


def _read(condition: Filter, row: CollectionRow) -> Reading:
    types = row.attribute_types
    return Reading(typed(condition, types), unknown_in(condition, types))
