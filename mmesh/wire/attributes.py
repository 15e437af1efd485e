"""Attributes to protobuf and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date
from typing import Any

from mmesh.api.filter.v1 import filter_pb2
from mmesh.candidates import check_count, check_list
from mmesh.content import Attributes, AttributeValue
from mmesh.errors import InvalidField
from mmesh.wire.times import timestamp_from_pb, timestamp_to_pb

LONGEST_SHOWN = 80
"""Characters of a name that an error tells."""


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
    if isinstance(value, date):
        return filter_pb2.AttributeValue(timestamp_value=timestamp_to_pb(value))
    strings = filter_pb2.StringList(values=list(value))
    return filter_pb2.AttributeValue(string_list_value=strings)


def attribute_from_pb(message: filter_pb2.AttributeValue, path: str) -> AttributeValue:
    """Return the value of `message`."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidField(path, "has no value")
    if kind == "string_list_value":
        check_list(message.string_list_value.values, path)
        return tuple(message.string_list_value.values)
    if kind == "timestamp_value":
        return timestamp_from_pb(message.timestamp_value, path)
    value: AttributeValue = getattr(message, kind)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidField(path, "is not finite")
    return value


def attributes_to_pb(attributes: Attributes, into: Any) -> None:
    """Write `attributes` into a map field of messages."""
    for name, value in attributes.items():
        into[name].CopyFrom(attribute_to_pb(value))


def attributes_from_pb(messages: Mapping[str, Any], path: str = "attributes") -> Attributes:
    """Return the attributes of a map field.

    Raises:
        InvalidField: they are too many to look at, or one has no value.
    """
    if not messages:
        return {}  # soon: to go through an empty map costs a third of what a hit does
    check_count(messages, path)
    return {
        name: attribute_from_pb(value, f"{path}[{name[:LONGEST_SHOWN]!r}]")
        for name, value in messages.items()
    }
