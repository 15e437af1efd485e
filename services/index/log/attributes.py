"""Types of attributes: fixed by the first value of a name, checked ever after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mmesh.candidates import Candidate
from mmesh.content import AttributeValue
from mmesh.errors import InvalidField, InvalidFilter
from mmesh.filters import AllOf, AnyOf, Compare, Filter, In, Not

_COMPARABLE = {"string_list": "string", "integer": "number", "float": "number"}


def type_of(value: AttributeValue) -> str:
    """Return the name of the value's type."""
    if isinstance(value, bool):
        return "boolean"
    names = {int: "integer", float: "float", str: "string", tuple: "string_list"}
    return names[type(value)]


def attribute_types_with(
    candidates: Sequence[Candidate],
) -> Callable[[Mapping[str, str]], dict[str, str]]:
    """Return a function that adds the types of the candidates' attributes to known ones.

    It raises `InvalidField` where a value has another type than the attribute.
    """

    def extend(types: Mapping[str, str]) -> dict[str, str]:
        known = dict(types)
        for number, candidate in enumerate(candidates):
            for name, value in candidate.attributes.items():
                given, wanted = type_of(value), known.setdefault(name, type_of(value))
                if given != wanted and (given, wanted) != ("integer", "float"):
                    path = f"candidates[{number}].attributes[{name!r}]"
                    problem = f"is of type {given}; in this collection it is {wanted}"
                    raise InvalidField(path, problem)
        return known

    return extend


def check_types(condition: Filter, types: Mapping[str, str]) -> None:
    """Raise `InvalidFilter` where a filter compares an attribute with a value of another type."""
    match condition:
        case AllOf(filters) | AnyOf(filters):
            for part in filters:
                check_types(part, types)
        case Not(inner):
            check_types(inner, types)
        case Compare(attribute, _, value):
            _check_type(attribute, value, types)
        case In(attribute, values):
            for value in values:
                _check_type(attribute, value, types)


def _check_type(attribute: str, value: AttributeValue, types: Mapping[str, str]) -> None:
    wanted, given = types.get(attribute), type_of(value)
    if wanted is None:
        return
    if _COMPARABLE.get(wanted, wanted) != _COMPARABLE.get(given, given):
        problem = f"compares {attribute!r}, which is of type {wanted}, with a value of type {given}"
        raise InvalidFilter("filter", problem)
