"""Filters over the rows of a block: each attribute as typed columns, each condition as a mask."""

from __future__ import annotations

import json
import math
import operator
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, ClassVar

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from mmesh.content import AttributeValue
from mmesh.errors import DataLoss
from mmesh.filters import AllOf, AnyOf, Compare, Exists, Filter, In, Not, Operator
from mmesh.values.timestamps import micros_of
from services.index.segments import bitmap
from services.index.segments.strings import Strings

Mask = NDArray[np.bool_]
Arrays = Mapping[str, NDArray[Any]]
MICROS = "time_us"
"""Key of a moment in the JSON of attributes: its value are microseconds since 1970."""
CACHED_CONDITIONS = 64
"""Masks that a segment keeps; each takes a bit a row."""

_COMPARISONS: dict[Operator, Callable[[Any, Any], Any]] = {
    Operator.EQUAL: operator.eq,
    Operator.NOT_EQUAL: operator.ne,
    Operator.LESS: operator.lt,
    Operator.LESS_OR_EQUAL: operator.le,
    Operator.GREATER: operator.gt,
    Operator.GREATER_OR_EQUAL: operator.ge,
}


_MOMENT = np.dtype("datetime64[us]")


@dataclass(frozen=True, slots=True)
class Values:
    """The values of one type that an attribute has: pairs of a row and a value."""

    rows: NDArray[np.uint32]
    """Row of each value, rising; a list gives its row several."""
    values: NDArray[Any]
    """int64, float64, bool or datetime64[us]; for strings the number of each in `strings`."""
    strings: Strings | None = None
    """Distinct strings, sorted, so that their numbers have their order."""

    @property
    def size_bytes(self) -> int:
        """Bytes in memory."""
        own = self.rows.nbytes + self.values.nbytes
        return own + (self.strings.size_bytes if self.strings else 0)

    def compare(self, how: Operator, wanted: AttributeValue) -> Mask:
        """Return for each value whether the comparison holds, as Python would compare.

        But a boolean equals no number, and values of two types have no order.
        """
        if self.strings is not None:
            return self._compare_strings(how, wanted)
        if self.values.dtype == _MOMENT:
            return self._compare_moments(how, wanted)
        same_type = isinstance(wanted, bool) == (self.values.dtype == np.bool_)
        if not same_type or not isinstance(wanted, int | float):
            return np.full(len(self.values), how is Operator.NOT_EQUAL)
        if self.values.dtype == np.int64:
            return _compare_integers(self.values, how, wanted)
        if self.values.dtype == np.float64:
            return _compare_floats(self.values, how, wanted)
        holds: Mask = _COMPARISONS[how](self.values, wanted)
        return holds

    def _compare_moments(self, how: Operator, wanted: AttributeValue) -> Mask:
        if not isinstance(wanted, date):
            return np.full(len(self.values), how is Operator.NOT_EQUAL)
        holds: Mask = _COMPARISONS[how](self.values, np.datetime64(micros_of(wanted), "us"))
        return holds

    def _compare_strings(self, how: Operator, wanted: AttributeValue) -> Mask:
        if not isinstance(wanted, str) or self.strings is None:
            return np.full(len(self.values), how is Operator.NOT_EQUAL)
        first, end = bisect_left(self.strings, wanted), bisect_right(self.strings, wanted)
        match how:
            case Operator.EQUAL:
                return (self.values >= first) & (self.values < end)
            case Operator.NOT_EQUAL:
                return (self.values < first) | (self.values >= end)
            case Operator.LESS:
                return self.values < first
            case Operator.LESS_OR_EQUAL:
                return self.values < end
            case Operator.GREATER:
                return self.values >= end
            case Operator.GREATER_OR_EQUAL:
                return self.values >= first

    def among(self, wanted: Iterable[AttributeValue]) -> Mask:
        """Return for each value whether it equals one of `wanted`."""
        return np.isin(self.values, np.array(list(self._stored(wanted)), self.values.dtype))

    def _stored(self, wanted: Iterable[AttributeValue]) -> Iterable[int | float | np.datetime64]:
        """Yield those of `wanted` that can be among the values, as they are stored."""
        for value in wanted:
            if self.strings is not None:
                place = bisect_left(self.strings, value) if isinstance(value, str) else -1
                if 0 <= place < len(self.strings) and self.strings[place] == value:
                    yield place
            elif isinstance(value, date) or self.values.dtype == _MOMENT:
                if isinstance(value, date) and self.values.dtype == _MOMENT:
                    yield np.datetime64(micros_of(value), "us")
            elif isinstance(value, bool) or self.values.dtype == np.bool_:
                if isinstance(value, bool) and self.values.dtype == np.bool_:
                    yield value
            elif isinstance(value, int | float):
                yield from _as_stored(value, self.values.dtype)


def _as_stored(value: float, dtype: np.dtype[Any]) -> Iterable[float]:
    if not math.isfinite(value):
        return
    if dtype == np.int64:
        if value == int(value) and -(2**63) <= value < 2**63:
            yield int(value)
    elif abs(value) < 2**1023 and float(value) == value:
        yield float(value)


def _compare_integers(values: NDArray[np.int64], how: Operator, wanted: float) -> Mask:
    """Compare exactly: a float would lose the last digits of a large integer."""
    if isinstance(wanted, float):
        if not math.isfinite(wanted):
            holds: Mask = _COMPARISONS[how](values.astype(np.float64), wanted)
            return holds
        if wanted != math.floor(wanted):
            return _compare_with_gap(values, how, math.floor(wanted))
        wanted = int(wanted)
    if not -(2**63) <= wanted < 2**63:
        return np.full(len(values), bool(_COMPARISONS[how](0, wanted)))
    exact: Mask = _COMPARISONS[how](values, np.int64(wanted))
    return exact


def _compare_with_gap(values: NDArray[Any], how: Operator, below: float) -> Mask:
    """Compare with a number between `below` and the next value that there can be."""
    match how:
        case Operator.EQUAL | Operator.NOT_EQUAL:
            return np.full(len(values), how is Operator.NOT_EQUAL)
        case Operator.LESS | Operator.LESS_OR_EQUAL:
            return _compare_stored(values, Operator.LESS_OR_EQUAL, below)
        case Operator.GREATER | Operator.GREATER_OR_EQUAL:
            return _compare_stored(values, Operator.GREATER, below)


def _compare_stored(values: NDArray[Any], how: Operator, wanted: float) -> Mask:
    if values.dtype == np.int64:
        return _compare_integers(values, how, int(wanted))
    holds: Mask = _COMPARISONS[how](values, wanted)
    return holds


def _compare_floats(values: NDArray[np.float64], how: Operator, wanted: float) -> Mask:
    nearest = float(wanted) if abs(wanted) < 2**1023 or isinstance(wanted, float) else math.nan
    if nearest == wanted or math.isnan(nearest):
        holds: Mask = _COMPARISONS[how](values, nearest)
        return holds
    below = nearest if nearest < wanted else math.nextafter(nearest, -math.inf)
    return _compare_with_gap(values, how, below)


class Columns:
    """The attributes of n rows, ready to be filtered."""

    def __init__(self, rows: int, columns: Mapping[str, Sequence[Values]]) -> None:
        self._rows, self._columns = rows, columns

    @classmethod
    def of(cls, attributes: Iterable[str]) -> Columns:
        """Read the attributes of rows from their JSON; an empty text has none."""
        read: dict[tuple[str, type], _Read] = {}
        rows = 0
        for row, text in enumerate(attributes):
            rows = row + 1
            for name, value in json.loads(text).items() if text else ():
                for single in value if isinstance(value, list) else (value,):
                    key = name, type(single)
                    if key not in read:
                        read[key] = _Read(type(single))
                    read[key].add(row, single)
        columns: dict[str, list[Values]] = {}
        for (name, _), values in read.items():
            columns.setdefault(name, []).append(values.finished())
        return cls(rows, columns)

    def __len__(self) -> int:
        """Return n."""
        return self._rows

    @property
    def size_bytes(self) -> int:
        """Bytes in memory."""
        return sum(values.size_bytes for column in self._columns.values() for values in column)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the columns as arrays that `from_arrays` takes."""
        entries = [(name, values) for name, column in self._columns.items() for values in column]
        names = Strings.pack(name for name, _ in entries)
        arrays: dict[str, NDArray[Any]] = {
            "column_names": names.blob,
            "column_name_offsets": names.offsets,
        }
        for number, (_, values) in enumerate(entries):
            arrays[f"column{number}_rows"] = values.rows
            arrays[f"column{number}_values"] = values.values
            if values.strings is not None:
                arrays[f"column{number}_strings"] = values.strings.blob
                arrays[f"column{number}_offsets"] = values.strings.offsets
        return arrays

    @classmethod
    def from_arrays(cls, rows: int, arrays: Arrays) -> Columns:
        """Return what `arrays` stored.

        Raises:
            DataLoss: an array does not fit the others, or a row is not below `rows`.
        """
        columns: dict[str, list[Values]] = {}
        names = Strings(arrays["column_names"], arrays["column_name_offsets"])
        for number, name in enumerate(names):
            strings = None
            if f"column{number}_strings" in arrays:
                texts, offsets = f"column{number}_strings", f"column{number}_offsets"
                strings = Strings(arrays[texts], arrays[offsets])
            row_of, values = arrays[f"column{number}_rows"], arrays[f"column{number}_values"]
            if len(row_of) != len(values) or (len(row_of) and int(row_of.max()) >= rows):
                raise DataLoss(f"the column of attribute {name!r} does not fit the segment's rows")
            columns.setdefault(name, []).append(Values(row_of, values, strings))
        return cls(rows, columns)

    def mask(self, condition: Filter) -> Mask:
        """Return which rows the condition holds for, as booleans (n,)."""
        match condition:
            case AllOf(filters):
                return self._combine(np.logical_and, filters, start=True)
            case AnyOf(filters):
                return self._combine(np.logical_or, filters, start=False)
            case Not(inner):
                return ~self.mask(inner)
            case In(attribute, wanted):
                return self._where(attribute, lambda values: values.among(wanted))
            case Exists(attribute):
                return self._where(attribute, lambda values: np.ones(len(values.rows), np.bool_))
            case Compare(attribute, how, value):
                return self._where(attribute, lambda values: values.compare(how, value))

    def _combine(self, combine: np.ufunc, filters: Sequence[Filter], *, start: bool) -> Mask:
        mask = np.full(self._rows, start)
        for part in filters:
            combine(mask, self.mask(part), out=mask)
        return mask

    def _where(self, attribute: str, holds: Callable[[Values], Mask]) -> Mask:
        mask = np.zeros(self._rows, np.bool_)
        for values in self._columns.get(attribute, ()):
            mask[values.rows[holds(values)]] = True
        return mask


class _Read:
    """The values of one attribute and type while they are being read."""

    _CODES: ClassVar[dict[type, str]] = {bool: "b", int: "q", float: "d", str: "I", dict: "q"}

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self._rows, self._values = array("I"), array(self._CODES[kind])
        self._numbers: dict[str, int] = {}

    def add(self, row: int, value: Any) -> None:
        """Add a value of a row."""
        self._rows.append(row)
        if self._kind is str:
            value = self._numbers.setdefault(value, len(self._numbers))
        elif self._kind is dict:
            value = value[MICROS]
        self._values.append(value)

    def finished(self) -> Values:
        """Return what was added."""
        rows, values = np.array(self._rows, np.uint32), np.array(self._values)
        if self._kind is not str:
            dtype = {bool: np.dtype(np.bool_), dict: _MOMENT}.get(self._kind, values.dtype)
            return Values(rows, values.astype(dtype))
        distinct = sorted(self._numbers)
        places = np.empty(len(distinct), np.min_scalar_type(len(distinct)))
        places[[self._numbers[string] for string in distinct]] = np.arange(len(distinct))
        return Values(rows, places[values], Strings.pack(distinct))


@dataclass(frozen=True, slots=True)
class Chosen:
    """The rows of a segment that a search may return."""

    bits: bitmap.Bits
    count: int
    rows: NDArray[np.int64] | None = None
    """The same as numbers, where there are few."""


class ChosenCache:
    """What the latest conditions choose among the rows of a segment; for any number of threads."""

    def __init__(self, columns: Columns, few: int) -> None:
        """Keep row numbers, too, for conditions that choose at most `few` rows."""
        self._columns, self._few = columns, few
        self._kept: LRUCache[str, Chosen] = LRUCache(CACHED_CONDITIONS)
        self._lock = threading.Lock()

    def get(self, condition: Filter) -> Chosen:
        """Return what a condition chooses, dead rows included."""
        key = repr(condition)  # equality will not do: True == 1
        with self._lock:
            known = self._kept.get(key)
        if known is not None:
            return known
        chosen = self._choose(condition)
        with self._lock:
            self._kept[key] = chosen
        return chosen

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._columns)

    def _choose(self, condition: Filter) -> Chosen:
        mask = self._columns.mask(condition)
        count = int(np.count_nonzero(mask))
        rows = np.flatnonzero(mask) if count <= self._few else None
        return Chosen(bitmap.pack(mask), count, rows)

    @property
    def size_bytes(self) -> int:
        """Bytes in memory."""
        with self._lock:
            kept = list(self._kept.values())
        return sum(c.bits.nbytes + (c.rows.nbytes if c.rows is not None else 0) for c in kept)
