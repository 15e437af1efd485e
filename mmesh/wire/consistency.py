"""Consistency levels to protobuf and back."""

from __future__ import annotations

from typing import cast

from mmesh.api.collection.v1 import collection_pb2
from mmesh.search import Consistency
from mmesh.wire.enums import by_number, enum_from_pb

_CONSISTENCIES = {
    Consistency.EVENTUAL: collection_pb2.CONSISTENCY_EVENTUAL,
    Consistency.SESSION: collection_pb2.CONSISTENCY_SESSION,
    Consistency.STRONG: collection_pb2.CONSISTENCY_STRONG,
}
_CONSISTENCY_OF = by_number(_CONSISTENCIES)


def consistency_to_pb(consistency: Consistency | None) -> collection_pb2.Consistency.ValueType:
    """Return the wire value; None is unspecified."""
    if consistency is None:
        return collection_pb2.CONSISTENCY_UNSPECIFIED
    return _CONSISTENCIES[consistency]


def consistency_from_pb(value: int) -> Consistency | None:
    """Return the consistency, or None when unspecified."""
    return cast("Consistency | None", enum_from_pb(_CONSISTENCY_OF, value, "consistency"))
