"""Enums: tables of values, read with a clear error for an unknown number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmesh.errors import InvalidField


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
