"""Filters, conditions on attributes; `filter_language` reads them from an expression."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mmesh.content import AttributeValue
from mmesh.errors import InvalidFilter

MAX_DEPTH = 16
MAX_CONDITIONS = 256
MAX_VALUES = 4096
"""Values of all conditions of a filter together."""
MAX_FILTER_BYTES = 1 << 19
"""Bytes of all names and strings of a filter together, as UTF-8."""
MAX_MESSAGE_BYTES = 2 * MAX_FILTER_BYTES
"""No filter within the limits has more in a message, where values and conditions take some, too."""
MAX_BATCH_PARTS = 8_192
"""Conditions and values of all different filters of a batch of searches together."""


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
class Exists:
    """Holds for candidates that have the attribute; an empty list is none."""

    attribute: str


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


Filter = Compare | In | Exists | Not | AllOf | AnyOf


def attributes_in(condition: Filter) -> Iterator[str]:
    """Yield the attribute of each condition, in order."""
    waiting = [condition]
    while waiting:
        match waiting.pop():
            case AllOf(filters) | AnyOf(filters):
                waiting += reversed(filters)
            case Not(inner):
                waiting.append(inner)
            case Compare(attribute) | In(attribute) | Exists(attribute):
                yield attribute


def check_filter(condition: Filter, path: str = "filter") -> None:
    """Raise `InvalidFilter` when a filter is larger than allowed, as a whole, or compares badly.

    What checking, sending and evaluating it costs is linear in these sizes.
    """
    size = FilterSize(path)
    waiting, length = [(condition, 1)], 0
    while waiting:
        part, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise InvalidFilter(path, f"is too large; at most {MAX_DEPTH} deep is allowed")
        size.add(conditions=1, values=_value_count(part))
        length += _text_bytes(part)
        waiting += [(child, depth + 1) for child in _children(part)]
        _check_values(part, path)
    if length > MAX_FILTER_BYTES:
        raise InvalidFilter(path, f"is too large; {_LIMITS}")


_LIMITS = (
    f"in all, at most {MAX_CONDITIONS} conditions, {MAX_VALUES:,} values and "
    f"{MAX_FILTER_BYTES >> 10} KiB of names and strings are allowed"
)


def parts_of(conditions: Iterable[Filter]) -> int:
    """Return how many conditions and values filters have; see `MAX_BATCH_PARTS`."""
    waiting, parts = list(conditions), 0
    while waiting:
        part = waiting.pop()
        parts += 1 + _value_count(part)
        waiting += _children(part)
    return parts


class FilterSize:
    """How large a filter is, while it is counted."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._conditions = self._values = 0

    @property
    def parts(self) -> int:
        """Conditions and values that were counted."""
        return self._conditions + self._values

    def add(self, *, conditions: int = 0, values: int = 0) -> None:
        """Count parts of the filter.

        Raises:
            InvalidFilter: it is larger than allowed.
        """
        self._conditions += conditions
        self._values += values
        if self._conditions > MAX_CONDITIONS or self._values > MAX_VALUES:
            raise InvalidFilter(self._path, f"is too large; {_LIMITS}")


def _value_count(condition: Filter) -> int:
    if isinstance(condition, In):
        return len(condition.values)
    if not isinstance(condition, Compare):
        return 0
    return max(1, len(condition.value)) if isinstance(condition.value, tuple) else 1


def _text_bytes(condition: Filter) -> int:
    if isinstance(condition, Exists):
        return len(condition.attribute.encode("utf-8", "surrogatepass"))
    if not isinstance(condition, In | Compare):
        return 0
    given = condition.values if isinstance(condition, In) else (condition.value,)
    texts = [text for one in given for text in (one if isinstance(one, tuple) else (one,))]
    given_texts = (text for text in (condition.attribute, *texts) if isinstance(text, str))
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in given_texts)


def _children(condition: Filter) -> tuple[Filter, ...]:
    if isinstance(condition, AllOf | AnyOf):
        return condition.filters
    return (condition.filter,) if isinstance(condition, Not) else ()


def _check_values(condition: Filter, path: str) -> None:
    if isinstance(condition, In):
        _check_set(condition, path)
    ordering = isinstance(condition, Compare) and condition.operator.value[0] in "<>"
    if ordering and isinstance(condition.value, bool | tuple):  # type: ignore[union-attr]  # Compare
        raise InvalidFilter(
            path, "orders booleans or lists; only numbers and strings have an order"
        )


def _check_set(condition: In, path: str) -> None:
    if not condition.values:
        raise InvalidFilter(path, "has a set of 0 values, which never holds; give at least one")
    if any(isinstance(value, tuple) for value in condition.values):
        raise InvalidFilter(path, "has a list in a set of values; give its strings by themselves")
