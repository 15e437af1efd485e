"""Attributes and filters to protobuf and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmesh.api.filter.v1 import filter_pb2
from mmesh.content import Attributes, AttributeValue
from mmesh.errors import InvalidField, InvalidFilter
from mmesh.filters import MAX_DEPTH, AllOf, AnyOf, Compare, Filter, In, Not, Operator

_OPERATORS = {
    Operator.EQUAL: filter_pb2.OPERATOR_EQUAL,
    Operator.NOT_EQUAL: filter_pb2.OPERATOR_NOT_EQUAL,
    Operator.LESS: filter_pb2.OPERATOR_LESS,
    Operator.LESS_OR_EQUAL: filter_pb2.OPERATOR_LESS_OR_EQUAL,
    Operator.GREATER: filter_pb2.OPERATOR_GREATER,
    Operator.GREATER_OR_EQUAL: filter_pb2.OPERATOR_GREATER_OR_EQUAL,
}


def attribute_to_pb(value: AttributeValue) -> filter_pb2.AttributeValue:
    """Return the message of one attribute value."""
    if isinstance(value, bool):
        return filter_pb2.AttributeValue(boolean_value=value)
    if isinstance(value, int):
        return filter_pb2.AttributeValue(integer_value=value)
    if isinstance(value, float):
        return filter_pb2.AttributeValue(float_value=value)
    if isinstance(value, str):
        return filter_pb2.AttributeValue(string_value=value)
    strings = filter_pb2.StringList(values=list(value))
    return filter_pb2.AttributeValue(string_list_value=strings)


def attribute_from_pb(message: filter_pb2.AttributeValue, path: str) -> AttributeValue:
    """Return the value of `message`."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidField(path, "has no value")
    if kind == "string_list_value":
        return tuple(message.string_list_value.values)
    value: AttributeValue = getattr(message, kind)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidField(path, "is not finite")
    return value


def attributes_to_pb(attributes: Attributes, into: Any) -> None:
    """Write `attributes` into a map field of messages."""
    for name, value in attributes.items():
        into[name].CopyFrom(attribute_to_pb(value))


def attributes_from_pb(messages: Mapping[str, Any], path: str = "attributes") -> Attributes:
    """Return the attributes of a map field."""
    return {n: attribute_from_pb(value, f"{path}[{n!r}]") for n, value in messages.items()}


def filter_to_pb(condition: Filter) -> filter_pb2.Filter:
    """Return the message of `condition`."""
    match condition:
        case AllOf(filters):
            return filter_pb2.Filter(all_of=_filters_to_pb(filters))
        case AnyOf(filters):
            return filter_pb2.Filter(any_of=_filters_to_pb(filters))
        case Not(inner):
            message = filter_pb2.Filter()
            getattr(message, "not").CopyFrom(filter_to_pb(inner))  # a keyword in Python
            return message
        case In(attribute, values):
            members = [attribute_to_pb(value) for value in values]
            membership = filter_pb2.Membership(attribute=attribute, values=members)
            message = filter_pb2.Filter()
            getattr(message, "in").CopyFrom(membership)  # a keyword in Python
            return message
        case Compare(attribute, operator, value):
            compare = filter_pb2.Compare(
                attribute=attribute, operator=_OPERATORS[operator], value=attribute_to_pb(value)
            )
            return filter_pb2.Filter(compare=compare)


def _filters_to_pb(filters: tuple[Filter, ...]) -> filter_pb2.FilterList:
    return filter_pb2.FilterList(filters=[filter_to_pb(part) for part in filters])


def filter_from_pb(message: filter_pb2.Filter, path: str = "filter", depth: int = 1) -> Filter:
    """Return the filter of `message`.

    Raises:
        InvalidFilter: a part is empty, an operator unknown, or it is nested over 16 deep.
    """
    if depth > MAX_DEPTH:
        raise InvalidFilter("filter", f"is nested over {MAX_DEPTH} deep")
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidFilter(path, "is empty; set one of all_of, any_of, not, compare, in")
    part = getattr(message, kind)
    if kind == "compare":
        return _compare_from_pb(part, f"{path}.compare")
    if kind == "in":
        return In(part.attribute, tuple(_operand(v, f"{path}.in") for v in part.values))
    if kind == "not":
        return Not(filter_from_pb(part, f"{path}.not", depth + 1))
    inner = (filter_from_pb(f, f"{path}.{kind}", depth + 1) for f in part.filters)
    return AllOf(tuple(inner)) if kind == "all_of" else AnyOf(tuple(inner))


def _compare_from_pb(message: filter_pb2.Compare, path: str) -> Compare:
    known = {number: operator for operator, number in _OPERATORS.items()}
    if message.operator not in known:
        raise InvalidFilter(f"{path}.operator", f"is {message.operator}, which is not an operator")
    value = _operand(message.value, f"{path}.value")
    return Compare(message.attribute, known[message.operator], value)


def _operand(message: filter_pb2.AttributeValue, path: str) -> AttributeValue:
    try:
        return attribute_from_pb(message, path)
    except InvalidField as error:
        raise InvalidFilter(error.field, error.problem) from None
