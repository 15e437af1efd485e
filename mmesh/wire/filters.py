"""Filters to protobuf and back."""

from __future__ import annotations

from typing import Any

from mmesh.api.filter.v1 import filter_pb2
from mmesh.content import AttributeValue
from mmesh.errors import InvalidField, InvalidFilter
from mmesh.filters import (
    MAX_BATCH_PARTS,
    MAX_DEPTH,
    MAX_MESSAGE_BYTES,
    AllOf,
    AnyOf,
    Compare,
    Exists,
    Filter,
    FilterSize,
    In,
    Not,
    Operator,
)
from mmesh.wire.attributes import attribute_from_pb, attribute_to_pb

_OPERATORS = {
    Operator.EQUAL: filter_pb2.OPERATOR_EQUAL,
    Operator.NOT_EQUAL: filter_pb2.OPERATOR_NOT_EQUAL,
    Operator.LESS: filter_pb2.OPERATOR_LESS,
    Operator.LESS_OR_EQUAL: filter_pb2.OPERATOR_LESS_OR_EQUAL,
    Operator.GREATER: filter_pb2.OPERATOR_GREATER,
    Operator.GREATER_OR_EQUAL: filter_pb2.OPERATOR_GREATER_OR_EQUAL,
}
_OPERATOR_OF = {number: operator for operator, number in _OPERATORS.items()}
_SIMPLE = {bool: "boolean_value", int: "integer_value", float: "float_value", str: "string_value"}
_PLAIN = frozenset(("boolean_value", "integer_value", "string_value"))
"""Kinds of values of which nothing is to be checked."""


def filter_to_pb(condition: Filter) -> filter_pb2.Filter:
    """Return the message of `condition`.

    Raises:
        InvalidFilter: it holds what fits into no message.
    """
    try:
        return _to_pb(condition)
    except UnicodeEncodeError:
        problem = "holds a lone surrogate, which is not valid Unicode"
        raise InvalidFilter("filter", problem) from None
    except ValueError:  # protobuf's own, of integers
        raise InvalidFilter("filter", "has a number that does not fit into 64 bits") from None
    except TypeError:
        raise InvalidFilter("filter", "has a value of a type that no attribute has") from None


def _to_pb(condition: Filter) -> filter_pb2.Filter:
    match condition:
        case AllOf(filters):
            return filter_pb2.Filter(all_of=_filters_to_pb(filters))
        case AnyOf(filters):
            return filter_pb2.Filter(any_of=_filters_to_pb(filters))
        case Not(inner):
            message = filter_pb2.Filter()
            getattr(message, "not").CopyFrom(_to_pb(inner))  # a keyword in Python
            return message
        case In(attribute, values):
            message = filter_pb2.Filter()
            membership = getattr(message, "in")  # a keyword in Python
            membership.attribute = attribute
            _add_members(values, membership.values)
            return message
        case Exists(attribute):
            return filter_pb2.Filter(exists=filter_pb2.Existence(attribute=attribute))
        case Compare(attribute, operator, value):
            compare = filter_pb2.Compare(
                attribute=attribute, operator=_OPERATORS[operator], value=attribute_to_pb(value)
            )
            return filter_pb2.Filter(compare=compare)


def _add_members(values: tuple[AttributeValue, ...], into: Any) -> None:
    """Write the values of a set; those of one simple type in a third of the time."""
    types = set(map(type, values))
    kind = _SIMPLE.get(types.pop()) if len(types) == 1 else None
    if kind is None:
        into.extend(map(attribute_to_pb, values))
        return
    for value in values:
        setattr(into.add(), kind, value)


def _filters_to_pb(filters: tuple[Filter, ...]) -> filter_pb2.FilterList:
    return filter_pb2.FilterList(filters=[_to_pb(part) for part in filters])


def filter_from_pb(message: filter_pb2.Filter, path: str = "filter") -> Filter:
    """Return the filter of `message`; one that is too large is refused before it is converted.

    Raises:
        InvalidFilter: a part is empty, an operator unknown, or it is larger than allowed.
    """
    _check_message_bytes(message, path)
    return _from_pb(message, path, 1, FilterSize(path))


def _from_pb(message: filter_pb2.Filter, path: str, depth: int, size: FilterSize) -> Filter:
    if depth > MAX_DEPTH:
        raise InvalidFilter("filter", f"is nested over {MAX_DEPTH} deep")
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidFilter(path, "is empty; set one of all_of, any_of, not, compare, in, exists")
    part = getattr(message, kind)
    size.add(conditions=1)
    if kind == "compare":
        size.add(values=max(1, len(part.value.string_list_value.values)))
        return _compare_from_pb(part, f"{path}.compare")
    if kind == "in":
        size.add(values=len(part.values))
        return In(part.attribute, _members(part.values, f"{path}.in"))
    if kind == "exists":
        return Exists(part.attribute)
    if kind == "not":
        return Not(_from_pb(part, f"{path}.not", depth + 1, size))
    inner = (_from_pb(f, f"{path}.{kind}", depth + 1, size) for f in part.filters)
    return AllOf(tuple(inner)) if kind == "all_of" else AnyOf(tuple(inner))


def _compare_from_pb(message: filter_pb2.Compare, path: str) -> Compare:
    if message.operator not in _OPERATOR_OF:
        raise InvalidFilter(f"{path}.operator", f"is {message.operator}, which is not an operator")
    value = _operand(message.value, f"{path}.value")
    return Compare(message.attribute, _OPERATOR_OF[message.operator], value)


def _members(messages: Any, path: str) -> tuple[AttributeValue, ...]:
    kinds = {message.WhichOneof("kind") for message in messages}
    if "string_list_value" in kinds:
        raise InvalidFilter(path, "has a list in a set of values; give its strings by themselves")
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind in _PLAIN:
        return tuple([getattr(message, kind) for message in messages])
    return tuple(_operand(message, path) for message in messages)


def _operand(message: filter_pb2.AttributeValue, path: str) -> AttributeValue:
    try:
        return attribute_from_pb(message, path)
    except InvalidField as error:
        raise InvalidFilter(error.field, error.problem) from None


class FilterReader:
    """Reads the filters of many searches of one message: equal ones once, and not too many."""

    def __init__(self) -> None:
        self._read: dict[bytes, Filter] = {}
        self._left = MAX_BATCH_PARTS

    def __call__(self, message: filter_pb2.Filter, path: str = "filter") -> Filter:
        """Return the filter of `message`; the same object for the same bytes.

        Raises:
            InvalidFilter: as `filter_from_pb` does, or those read before leave no room for it.
        """
        _check_message_bytes(message, path)
        data = message.SerializeToString()
        if data in self._read:
            return self._read[data]
        if self._left <= 0:
            raise self._too_many(path)
        size = FilterSize(path)
        try:
            condition = _from_pb(message, path, 1, size)
        finally:  # what is wrong has its cost, too
            self._left -= size.parts
        if self._left < 0:
            raise self._too_many(path)
        self._read[data] = condition
        return condition

    @staticmethod
    def _too_many(path: str) -> InvalidFilter:
        problem = f"have over {MAX_BATCH_PARTS:,} conditions and values together"
        return InvalidFilter(path, f"is one too many: the filters of this batch {problem}")


def _check_message_bytes(message: filter_pb2.Filter, path: str) -> None:
    """Raise `InvalidFilter` if the message is larger than that of any filter allowed."""
    if message.ByteSize() > MAX_MESSAGE_BYTES:
        raise InvalidFilter(path, f"has over {MAX_MESSAGE_BYTES >> 20} MiB, which is too large")
