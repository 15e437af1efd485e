"""Attributes of a collection: their types, how many candidates use them, and filters over them.

The first value of a name fixes its type for as long as a candidate uses it. Integers and floats are
one: an attribute is of type float as soon as one candidate has a float, whatever came first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import date
from itertools import islice

from mmesh.candidates import Candidate
from mmesh.collections import AttributeSummary, AttributeType
from mmesh.content import AttributeValue
from mmesh.errors import InvalidField, InvalidFilter
from mmesh.filters import AllOf, AnyOf, Compare, Exists, Filter, In, Not, attributes_in
from mmesh.values.ids import MAX_NAME_BYTES
from mmesh.values.spelling import nearest
from mmesh.values.timestamps import parse_timestamp

_COMPARABLE = {"string_list": "string", "integer": "number", "float": "number"}
_NUMBERS = {"integer", "float"}
MOST_UNKNOWN, MOST_MEANT = 8, 3
"""Unknown attributes of a filter that are named, and for which one like them is looked for."""
Types = Mapping[str, str]
Counts = Mapping[tuple[str, str], int]
"""How many candidates have an attribute, by its name and type."""


def type_of(value: AttributeValue) -> str:
    """Return the name of the value's type."""
    if isinstance(value, date):
        return "timestamp"
    return _NAMES[type(value)]


_NAMES = {
    bool: "boolean",
    int: "integer",
    float: "float",
    str: "string",
    tuple: "string_list",
    list: "string_list",
    dict: "timestamp",
}
"""Types of values, in Python and in the log's JSON."""


def type_check(candidates: Sequence[Candidate]) -> Callable[[Types], None]:
    """Return a function that checks the candidates' attributes against known types.

    It raises `InvalidField` where a value has another type than the attribute.
    """

    def check(types: Types) -> None:
        known = dict(types)
        for number, candidate in enumerate(candidates):
            for name, value in candidate.attributes.items():
                given, wanted = type_of(value), known.setdefault(name, type_of(value))
                if given != wanted and {given, wanted} != _NUMBERS:
                    path = f"candidates[{number}].attributes[{name!r}]"
                    problem = f"is of type {given}; in this collection it is {wanted}"
                    raise InvalidField(path, problem)

    return check


def types_in(row: str) -> Mapping[str, str]:
    """Return the types of a candidate's attributes, as its row has them.

    A damaged row has none, so that it can be replaced and deleted.
    """
    try:
        values = json.loads(row) if row else {}
    except ValueError:
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: _NAMES[type(one)] for name, one in values.items() if type(one) in _NAMES}


def type_of_uses(kinds: Set[str]) -> str:
    """Return the type of an attribute of which candidates have values of these types."""
    return "float" if kinds == _NUMBERS else min(kinds)


class Uses:
    """How many candidates of a collection have an attribute, by type, while it is written to."""

    def __init__(self, stored: Counts, rows: Mapping[str, Types]) -> None:
        """Take the counts of the attributes that may change, and the types in rows, by row."""
        self._stored, self._counts, self._types = stored, Counter(stored), rows
        self._touched: set[str] = set()

    def replace(self, old: str, new: str) -> None:
        """Note that a candidate has other attributes than before."""
        if old == new:
            return
        for row, step in ((old, -1), (new, 1)):
            for name, kind in self._types.get(row, {}).items():
                self._counts[name, kind] += step
                self._touched.add(name)

    def settled(self, types: Types) -> Types:
        """Return the types of attributes as they follow from the uses."""
        if not self._touched:
            return types
        settled = dict(types)
        for name in self._touched:
            kinds = {kind for kind in _NAMES.values() if self._counts[name, kind] > 0}
            if not kinds:
                settled.pop(name, None)
            else:
                settled[name] = type_of_uses(kinds)
        self._touched.clear()
        return settled

    @property
    def changed(self) -> Counts:
        """The counts that are not as they were stored; none is below 0."""
        found = {use: max(count, 0) for use, count in self._counts.items()}
        return {use: count for use, count in found.items() if count != self._stored.get(use, 0)}


def typed(condition: Filter, types: Types) -> Filter:
    """Return a filter whose values have the types of their attributes.

    A string that is an RFC 3339 time becomes that moment where the attribute has moments.

    Raises:
        InvalidFilter: it compares an attribute with a value of another type.
    """
    match condition:
        case AllOf(filters):
            return AllOf(tuple(typed(part, types) for part in filters))
        case AnyOf(filters):
            return AnyOf(tuple(typed(part, types) for part in filters))
        case Not(inner):
            return Not(typed(inner, types))
        case Compare(attribute, how, value):
            return Compare(attribute, how, _typed_value(attribute, value, types))
        case In(attribute, values):
            return In(attribute, tuple(_typed_value(attribute, one, types) for one in values))
        case Exists():
            return condition


def _typed_value(attribute: str, value: AttributeValue, types: Types) -> AttributeValue:
    wanted, given = types.get(attribute), type_of(value)
    if wanted is None or _COMPARABLE.get(wanted, wanted) == _COMPARABLE.get(given, given):
        return value
    hint = ""
    if wanted == "timestamp" and isinstance(value, str):
        try:
            return parse_timestamp(value)
        except ValueError as error:
            hint = f": {error}"
    elif isinstance(value, date):
        hint = "; a text is written in quotes"
    problem = f"compares {attribute!r}, which is of type {wanted}, with a value of type {given}"
    raise InvalidFilter("filter", problem + hint)


def unknown_in(condition: Filter, types: Types) -> dict[str, str]:
    """Return the attributes of a filter that no candidate has, each with one like it, or "".

    Only the first ones.
    """
    names = (name[:MAX_NAME_BYTES] for name in attributes_in(condition))
    named = dict.fromkeys(name for name in names if name not in types)
    return {
        name: nearest(name, types) if number < MOST_MEANT else ""
        for number, name in enumerate(islice(named, MOST_UNKNOWN))
    }


def summaries(counts: Counts) -> tuple[AttributeSummary, ...]:
    """Return each attribute once, with its type and how many candidates have it."""
    totals: Counter[str] = Counter()
    types: dict[str, str] = {}
    for (name, kind), count in counts.items():
        totals[name] += count
        types[name] = "float" if name in types else kind  # two types are integer and float
    return tuple(
        AttributeSummary(name, AttributeType(types[name]), totals[name]) for name in sorted(types)
    )
