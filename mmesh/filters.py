"""Filters, conditions on attributes; `filter_language` reads them from an expression."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mmesh.content import AttributeValue
from mmesh.errors import InvalidFilter

MAX_DEPTH = 16
MAX_CONDITIONS = 256
MAX_SET_VALUES = 4096


class Operator(enum.Enum):
    """Comparisons."""

    EQUAL = "=="
    NOT_EQUAL = "!="
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="


@dataclass(frozen=True, slots=True)
class Compare:
    """Compares one attribute with one value; false for candidates without the attribute."""

    attribute: str
    operator: Operator
    value: AttributeValue


@dataclass(frozen=True, slots=True)
class In:
    """Holds when the attribute equals any of the values."""

    attribute: str
    values: tuple[AttributeValue, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Holds when the filter does not."""

    filter: Filter


@dataclass(frozen=True, slots=True)
class AllOf:
    """Holds when all of the filters hold."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Holds when any of the filters holds."""

    filters: tuple[Filter, ...]


Filter = Compare | In | Not | AllOf | AnyOf


def check_filter(condition: Filter, path: str = "filter") -> None:
    """Raise `InvalidFilter` when nested over 16 deep or over 256 conditions."""
    waiting, conditions = [(condition, 1)], 0
    while waiting:
        part, depth = waiting.pop()
        conditions += 1
        if depth > MAX_DEPTH or conditions > MAX_CONDITIONS:
            limit = f"at most {MAX_DEPTH} deep and {MAX_CONDITIONS} conditions are allowed"
            raise InvalidFilter(path, f"is too large; {limit}")
        waiting += [(child, depth + 1) for child in _children(part)]
        _check_values(part, path)


def _children(condition: Filter) -> tuple[Filter, ...]:
    if isinstance(condition, AllOf | AnyOf):
        return condition.filters
    return (condition.filter,) if isinstance(condition, Not) else ()


def _check_values(condition: Filter, path: str) -> None:
    if isinstance(condition, In) and not 1 <= len(condition.values) <= MAX_SET_VALUES:
        count = len(condition.values)
        raise InvalidFilter(path, f"has a set of {count} values; 1 to {MAX_SET_VALUES} are allowed")
    ordering = isinstance(condition, Compare) and condition.operator.value[0] in "<>"
    if ordering and isinstance(condition.value, bool | tuple):  # type: ignore[union-attr]  # Compare
        raise InvalidFilter(
            path, "orders booleans or lists; only numbers and strings have an order"
        )
