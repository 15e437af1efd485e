"""Filters over the rows of a block: each attribute as a column, each condition as a mask."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmesh.content import Attributes, AttributeValue
from mmesh.filters import AllOf, AnyOf, Compare, Filter, In, Not, Operator

Mask = NDArray[np.bool_]

_COMPARISONS: dict[Operator, Callable[[AttributeValue, AttributeValue], bool]] = {
    Operator.EQUAL: operator.eq,
    Operator.NOT_EQUAL: operator.ne,
    Operator.LESS: operator.lt,
    Operator.LESS_OR_EQUAL: operator.le,
    Operator.GREATER: operator.gt,
    Operator.GREATER_OR_EQUAL: operator.ge,
}


def _holds(compare: Operator, value: AttributeValue, wanted: AttributeValue) -> bool:
    try:
        return _COMPARISONS[compare](value, wanted)
    except TypeError:  # values of two types have no order
        return False


@dataclass(frozen=True, slots=True)
class _Column:
    """One attribute: distinct values, and (row, value number) pairs; lists give several pairs."""

    values: list[AttributeValue]
    rows: NDArray[np.int64]
    numbers: NDArray[np.int64]


class Columns:
    """The attributes of n rows, ready to be filtered; columns are made when first asked for."""

    def __init__(self, attributes: Sequence[Attributes]) -> None:
        self._attributes = attributes
        self._columns: dict[str, _Column] = {}

    def mask(self, condition: Filter) -> Mask:
        """Return which rows the condition holds for, as booleans (n,)."""
        match condition:
            case AllOf(filters):
                return self._combine(np.logical_and, filters, start=True)
            case AnyOf(filters):
                return self._combine(np.logical_or, filters, start=False)
            case Not(inner):
                return ~self.mask(inner)
            case In(attribute, values):
                return self._where(attribute, lambda value: value in values)
            case Compare(attribute, compare, wanted):
                return self._where(attribute, lambda value: _holds(compare, value, wanted))

    def _combine(self, combine: np.ufunc, filters: Sequence[Filter], *, start: bool) -> Mask:
        mask = self._all(value=start)
        for part in filters:
            combine(mask, self.mask(part), out=mask)
        return mask

    def _all(self, *, value: bool) -> Mask:
        return np.full(len(self._attributes), value)

    def _where(self, attribute: str, holds: Callable[[AttributeValue], bool]) -> Mask:
        column = self._column(attribute)
        mask = self._all(value=False)
        if column.values:
            holding = np.fromiter(map(holds, column.values), np.bool_, len(column.values))
            mask[column.rows[holding[column.numbers]]] = True
        return mask

    def _column(self, attribute: str) -> _Column:
        if attribute not in self._columns:
            self._columns[attribute] = self._make_column(attribute)
        return self._columns[attribute]

    def _make_column(self, attribute: str) -> _Column:
        numbers: dict[AttributeValue, int] = {}
        pairs = []
        for row, attributes in enumerate(self._attributes):
            value = attributes.get(attribute, ())
            for single in value if isinstance(value, tuple) else (value,):
                pairs.append((row, numbers.setdefault(single, len(numbers))))
        table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        return _Column(list(numbers), table[:, 0], table[:, 1])
