"""Values of rows as attributes: what is kept, what becomes another type, and what is left out.

One rule for all files: a value that no attribute can hold is left out and counted, so that a column
that nobody needs refuses no row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from mmesh.candidates import MAX_ATTRIBUTES, MAX_LIST, MAX_STRING_BYTES
from mmesh.cli.files.sources.notes import Notes, Topic
from mmesh.content import AttributeValue
from mmesh.values.ids import MAX_NAME_BYTES, id_of_path
from mmesh.values.timestamps import format_timestamp, parse_timestamp, to_utc

EARLIER = "earlier values of a name"
"""What is left out where a row has several values of one name: the last one stays."""
_DEEPEST = 4
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class ColumnRules:
    """Which columns become attributes, and of which type."""

    types: Mapping[str, str]
    """Name of a type by column; others keep the type that they have."""
    columns: frozenset[str] | None = None
    """Columns that become attributes; None for all."""
    ignore: frozenset[str] = frozenset()
    """Columns that are as if they were not there."""

    def takes(self, column: str) -> bool:
        """Tell whether a column becomes an attribute."""
        return column not in self.ignore and (self.columns is None or column in self.columns)


class _LeftOut(Exception):
    """A value that no attribute can hold, and why."""


class AttributeReader:
    """Makes attributes of values, and counts what it changes or leaves out."""

    def __init__(self, rules: ColumnRules, notes: Notes) -> None:
        self._rules, self._notes = rules, notes
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()

    def read(self, values: Mapping[str, Any]) -> dict[str, AttributeValue]:
        """Return the attributes of a row.

        Raises:
            ValueError: a value is not of the type that its column was said to have.
        """
        made: dict[str, AttributeValue] = {}
        for column, value in _flat(values, self._note_object):
            if is_absent(value):
                continue
            if len(made) >= MAX_ATTRIBUTES:
                self._left_out(f"more than {MAX_ATTRIBUTES} (--columns chooses)", column)
                continue
            name = self._name_of(column, values)
            if not name:
                continue
            try:
                found = self._value_of(column, value)
            except _LeftOut as reason:
                self._left_out(str(reason), column)
                continue
            if name in made:
                self._left_out(EARLIER, column)
            made[name] = found
        return made

    def _value_of(self, column: str, value: Any) -> AttributeValue:
        wanted = self._rules.types.get(column)
        if wanted is None:
            return _checked(_natural(value, lambda what: self._note_change(what, column)))
        try:
            return _checked(TYPES[wanted](value))
        except (ValueError, TypeError, ArithmeticError, LookupError):
            raise ValueError(f"{column!r} is {_shown(value)}, which is no {wanted}") from None

    def _name_of(self, column: str, others: Mapping[str, Any]) -> str:
        if column not in self._names:
            self._names[column] = name = self._new_name(column, others)
            self._taken.add(name)
            if not name:
                self._left_out(f"names that are empty or over {MAX_NAME_BYTES} bytes", column)
            elif name != column:
                self._notes.add(Topic.RENAMED, f"{column!r} is {name}", "")
        return self._names[column]

    def _new_name(self, column: str, others: Mapping[str, Any]) -> str:
        """Return the column as an attribute's name, which no other column has; "" if it is none."""
        name = unique = id_of_path(column.strip())
        number = 2
        while unique != column and (unique in self._taken or unique in others):
            unique, number = f"{name}_{number}", number + 1
        return unique if len(unique.encode()) <= MAX_NAME_BYTES else ""

    def _left_out(self, reason: str, column: str) -> None:
        self._notes.add(Topic.LEFT_OUT, reason, column)

    def _note_change(self, what: str, column: str) -> None:
        self._notes.add(Topic.CHANGED, what, column)

    def _note_object(self, column: str) -> None:
        self._notes.add(Topic.CHANGED, "objects taken apart (a.b)", column)


def is_absent(value: Any) -> bool:
    """Tell whether a value stands for none: null, or not a number."""
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


def _flat(
    values: Mapping[str, Any], note: Callable[[str], None], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """Yield values by name; those inside objects have the names of both, joined by a dot."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and depth < _DEEPEST:
            note(name)
            yield from _flat(value, note, f"{name}.", depth + 1)
        else:
            yield name, value


def _natural(value: Any, note: Callable[[str], None]) -> AttributeValue:
    """Return a value as the attribute that it most naturally is."""
    match value:
        case bool() | int() | str():
            return value
        case float():
            return value
        case Decimal():
            note("decimals are floats")
            return float(value)
        case date():  # a datetime is one
            return to_utc(value)
        case time():
            note("times of day are texts")
            return value.isoformat()
        case timedelta():
            note("durations are seconds")
            return value.total_seconds()
        case list() | tuple():
            return _list_of(value, note)
        case _:
            kind = "bytes" if isinstance(value, bytes) else type(value).__name__
            raise _LeftOut(f"values of type {kind}")


def _list_of(values: list[Any] | tuple[Any, ...], note: Callable[[str], None]) -> tuple[str, ...]:
    there = [one for one in values if not is_absent(one)]
    if len(there) > MAX_LIST:
        raise _LeftOut(f"lists of more than {MAX_LIST}")
    if any(isinstance(one, Mapping | list | tuple | bytes) for one in there):
        raise _LeftOut("lists of lists or objects")
    if not all(isinstance(one, str) for one in there):
        note("lists are of texts")
    return tuple(_as_string(one) for one in there)


def _checked(value: AttributeValue) -> AttributeValue:
    """Return a value that is within the limits of attributes."""
    if isinstance(value, float) and not math.isfinite(value):
        raise _LeftOut("infinite numbers")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise _LeftOut("integers of more than 64 bits")
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and len(text.encode(errors="replace")) > MAX_STRING_BYTES:
            raise _LeftOut(f"texts of more than {MAX_STRING_BYTES} bytes")
    return value


# -- types that are asked for


def _as_string(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, date):
        return format_timestamp(value)
    if isinstance(value, Mapping | list | tuple | bytes):
        raise TypeError
    return str(value)


def _as_integer(value: Any) -> int:
    number = Decimal(value.strip()) if isinstance(value, str) else Decimal(value)
    if not number.is_finite() or number.adjusted() > 18 or number != number.to_integral_value():
        raise ValueError
    return int(number)


def _as_float(value: Any) -> float:
    return float(value)


def _as_boolean(value: Any) -> bool:
    return value if isinstance(value, bool) else _TRUTH[_as_string(value).strip().lower()]


def _as_date(value: Any) -> date:
    return to_utc(value) if isinstance(value, date) else parse_timestamp(_as_string(value).strip())


TYPES: dict[str, Callable[[Any], AttributeValue]] = {
    "string": _as_string,
    "integer": _as_integer,
    "float": _as_float,
    "boolean": _as_boolean,
    "date": _as_date,
}
"""What makes a value of the type of this name, or raises."""


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:39]}…"
