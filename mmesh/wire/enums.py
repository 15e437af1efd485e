"""Enums: tables of values, read with a clear error for an unknown number; levels of consistency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from mmesh.api.collection.v1 import collection_pb2
from mmesh.errors import InvalidField
from mmesh.search import Consistency


def by_number(table: Mapping[Any, Any]) -> dict[int, Any]:
    """Return the table of an enum the other way round, for `enum_from_pb`."""
    return {number: key for key, number in table.items()}


def enum_from_pb(table: Mapping[int, Any], value: int, path: str) -> Any:
    """Return what `table` has for a wire value, or None for the unspecified zero."""
    if value in table:
        return table[value]
    if value == 0:
        return None
    raise InvalidField(path, f"is {value}, which is not a value of its enum")


_CONSISTENCIES = {
    Consistency.EVENTUAL: collection_pb2.CONSISTENCY_EVENTUAL,
    Consistency.SESSION: collection_pb2.CONSISTENCY_SESSION,
    Consistency.STRONG: collection_pb2.CONSISTENCY_STRONG,
}
_CONSISTENCY_OF = by_number(_CONSISTENCIES)


def consistency_to_pb(consistency: Consistency | None) -> collection_pb2.Consistency.ValueType:
    """Return the wire value; None is unspecified."""
    if consistency is None:
        return collection_pb2.CONSISTENCY_UNSPECIFIED
    return _CONSISTENCIES[consistency]


def consistency_from_pb(value: int) -> Consistency | None:
    """Return the consistency, or None when unspecified."""
    return cast("Consistency | None", enum_from_pb(_CONSISTENCY_OF, value, "consistency"))
