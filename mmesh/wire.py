"""Dataclasses to protobuf messages and back; no logic beyond that.

`*_to_pb` builds a message, `*_from_pb` reads one and raises `InvalidField` where it is malformed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mmesh.api.content.v1 import content_pb2
from mmesh.api.index.v1 import collection_pb2, filter_pb2, index_pb2
from mmesh.api.problem.v1 import problem_pb2
from mmesh.api.vector.v1 import vector_pb2
from mmesh.candidates import (
    Candidate,
    Collection,
    CollectionLimits,
    CollectionSettings,
    Consistency,
    Page,
)
from mmesh.content import Attributes, AttributeValue, Content, Image, Modality, Part
from mmesh.errors import InvalidField, InvalidFilter, InvalidVector, MmeshError, error_class
from mmesh.filters import MAX_DEPTH, AllOf, AnyOf, Compare, Filter, In, Not, Operator
from mmesh.vectors import INT8_SCALE, DataType, FloatMatrix, pack, unpack

_MODALITIES = {
    Modality.TEXT: content_pb2.MODALITY_TEXT,
    Modality.IMAGE: content_pb2.MODALITY_IMAGE,
    Modality.IMAGE_TEXT: content_pb2.MODALITY_IMAGE_TEXT,
}
_DATA_TYPES = {
    DataType.FLOAT32: vector_pb2.DATA_TYPE_FLOAT32,
    DataType.FLOAT16: vector_pb2.DATA_TYPE_FLOAT16,
    DataType.INT8: vector_pb2.DATA_TYPE_INT8,
}
_OPERATORS = {
    Operator.EQUAL: filter_pb2.OPERATOR_EQUAL,
    Operator.NOT_EQUAL: filter_pb2.OPERATOR_NOT_EQUAL,
    Operator.LESS: filter_pb2.OPERATOR_LESS,
    Operator.LESS_OR_EQUAL: filter_pb2.OPERATOR_LESS_OR_EQUAL,
    Operator.GREATER: filter_pb2.OPERATOR_GREATER,
    Operator.GREATER_OR_EQUAL: filter_pb2.OPERATOR_GREATER_OR_EQUAL,
}
_CONSISTENCIES = {
    Consistency.EVENTUAL: index_pb2.CONSISTENCY_EVENTUAL,
    Consistency.SESSION: index_pb2.CONSISTENCY_SESSION,
    Consistency.STRONG: index_pb2.CONSISTENCY_STRONG,
}


def by_number(table: Mapping[Any, Any]) -> dict[int, Any]:
    """Return the table of an enum the other way round, for `enum_from_pb`."""
    return {number: key for key, number in table.items()}


def enum_from_pb(table: Mapping[int, Any], value: int, path: str) -> Any:
    """Return what `table` has for a wire value, or None for the unspecified zero."""
    if value in table:
        return table[value]
    if value == 0:
        return None
    raise InvalidField(path, f"is {value}, which is not a value of its enum")


_MODALITY_OF = by_number(_MODALITIES)
_DATA_TYPE_OF = by_number(_DATA_TYPES)
_CONSISTENCY_OF = by_number(_CONSISTENCIES)


def modality_to_pb(modality: Modality | None) -> content_pb2.Modality.ValueType:
    """Return the wire value; None is unspecified."""
    if modality is None:
        return content_pb2.MODALITY_UNSPECIFIED
    return _MODALITIES[modality]


def modality_from_pb(value: int, path: str = "modality") -> Modality | None:
    """Return the modality, or None when unspecified."""
    return cast("Modality | None", enum_from_pb(_MODALITY_OF, value, path))


def consistency_to_pb(consistency: Consistency | None) -> index_pb2.Consistency.ValueType:
    """Return the wire value; None is unspecified."""
    if consistency is None:
        return index_pb2.CONSISTENCY_UNSPECIFIED
    return _CONSISTENCIES[consistency]


def consistency_from_pb(value: int) -> Consistency | None:
    """Return the consistency, or None when unspecified."""
    return cast("Consistency | None", enum_from_pb(_CONSISTENCY_OF, value, "consistency"))


def content_to_pb(content: Content) -> content_pb2.Content:
    """Return the message of `content`."""
    return content_pb2.Content(parts=[_part_to_pb(part) for part in content.parts])


def _part_to_pb(part: Part) -> content_pb2.Part:
    if isinstance(part, str):
        return content_pb2.Part(text=part)
    return content_pb2.Part(image=content_pb2.Image(data=part.data, media_type=part.media_type))


def content_from_pb(message: content_pb2.Content, path: str = "content") -> Content:
    """Return the content of `message`; limits are checked by `check_content`."""
    parts = [_part_from_pb(part, f"{path}.parts[{n}]") for n, part in enumerate(message.parts)]
    return Content(tuple(parts))


def _part_from_pb(message: content_pb2.Part, path: str) -> Part:
    kind = message.WhichOneof("kind")
    if kind == "text":
        return message.text
    if kind == "image":
        return Image(message.image.data, message.image.media_type)
    raise InvalidField(path, "is empty; set its text or its image")


def vectors_to_pb(
    matrix: FloatMatrix, data_type: DataType = DataType.FLOAT32
) -> vector_pb2.Vectors:
    """Return the message of `matrix` (n, dim)."""
    values = pack(matrix, data_type)
    return vector_pb2.Vectors(dim=matrix.shape[1], data_type=_DATA_TYPES[data_type], values=values)


def data_type_from_pb(value: int, path: str) -> DataType:
    """Return the element type of a wire value; unspecified is float32."""
    data_type: DataType | None = enum_from_pb(_DATA_TYPE_OF, value, path)
    return data_type or DataType.FLOAT32


def directions_to_pb(matrix: NDArray[Any], data_type: DataType) -> vector_pb2.Vectors:
    """Return the message of `matrix` (n, dim) for who looks at the directions of its rows only.

    That lets rows be stretched to the whole range of a narrower `data_type`, so that little is lost
    by rounding. A matrix of int8 stands for value / 127.
    """
    if matrix.dtype == np.int8:
        matrix = matrix / np.float32(INT8_SCALE)
    elif data_type is not DataType.FLOAT32 and matrix.dtype != data_type.value:
        largest = np.abs(matrix).max(axis=1, keepdims=True, initial=0)
        matrix = matrix / np.where(largest > 0, largest, 1)
    return vectors_to_pb(matrix, data_type)


def vectors_from_pb(message: vector_pb2.Vectors) -> FloatMatrix:
    """Return the matrix (n, dim) of `message`; finiteness is checked by `unit_rows`."""
    data_type = enum_from_pb(_DATA_TYPE_OF, message.data_type, "vectors.data_type")
    if data_type is None:
        raise InvalidVector("vectors.data_type", "is not set")
    return unpack(message.values, message.dim, data_type)


def row_count(message: vector_pb2.Vectors) -> int:
    """Return how many rows a well-formed message has, 0 for any other."""
    data_type: DataType = _DATA_TYPE_OF.get(message.data_type, DataType.FLOAT32)
    return len(message.values) // max(1, message.dim * data_type.width)


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


def candidate_to_pb(candidate: Candidate) -> index_pb2.Candidate:
    """Return the message of `candidate`."""
    message = index_pb2.Candidate(id=candidate.id, content=content_to_pb(candidate.content))
    attributes_to_pb(candidate.attributes, message.attributes)
    return message


def candidate_from_pb(message: index_pb2.Candidate, path: str = "candidate") -> Candidate:
    """Return the candidate of `message`; limits are checked by `check_candidate`."""
    return Candidate(
        message.id,
        content_from_pb(message.content, f"{path}.content"),
        attributes_from_pb(message.attributes, f"{path}.attributes"),
    )


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


def problem_to_pb(error: MmeshError) -> problem_pb2.Problem:
    """Return the problem that says what `error` says."""
    return problem_pb2.Problem(
        code=int(error.code), reason=error.reason, message=error.message, metadata=error.metadata
    )


def problem_from_pb(message: problem_pb2.Problem) -> MmeshError:
    """Return the error that `message` stands for."""
    return make_error(message.code, message.reason, message.message, dict(message.metadata))


def make_error(code: int, reason: str, message: str, metadata: dict[str, str]) -> MmeshError:
    """Return an error of the class that fits code and reason, without its own wording."""
    cls = error_class(code, reason)
    error = cls.__new__(cls)
    MmeshError.__init__(error, message, metadata)
    if isinstance(error, InvalidField):
        error.field = metadata.get("field", "")
        error.problem = message.removeprefix(error.field).strip()
    return error


def settings_to_pb(settings: CollectionSettings) -> collection_pb2.CollectionSettings:
    """Return the message of `settings`."""
    limits = settings.limits
    return collection_pb2.CollectionSettings(
        index_factory=settings.index_factory,
        recall_target=settings.recall_target,
        limits=collection_pb2.CollectionLimits(
            max_candidates=limits.max_candidates,
            max_candidate_bytes=limits.max_candidate_bytes,
            max_attributes=limits.max_attributes,
            max_filter_depth=limits.max_filter_depth,
            max_limit=limits.max_limit,
        ),
        mirror=settings.mirror,
    )


def settings_from_pb(message: collection_pb2.CollectionSettings) -> CollectionSettings:
    """Return the settings of `message`; their bounds are checked by `check_settings`."""
    limits = message.limits
    return CollectionSettings(
        message.index_factory,
        message.recall_target,
        CollectionLimits(
            limits.max_candidates,
            limits.max_candidate_bytes,
            limits.max_attributes,
            limits.max_filter_depth,
            limits.max_limit,
        ),
        message.mirror,
    )


def collection_to_pb(collection: Collection) -> collection_pb2.Collection:
    """Return the message of `collection`."""
    message = collection_pb2.Collection(
        name=collection.name,
        dim=collection.dim,
        model_fingerprint=collection.model_fingerprint,
        candidates=[
            collection_pb2.ModalityCount(modality=modality_to_pb(modality), count=count)
            for modality, count in collection.candidates.items()
        ],
        shard_count=collection.shards,
        token=collection.token,
        settings=settings_to_pb(collection.settings),
        aliases=collection.aliases,
    )
    message.create_time.FromDatetime(collection.create_time)
    return message


def collection_from_pb(message: collection_pb2.Collection) -> Collection:
    """Return the collection of `message`."""
    counts = {modality_from_pb(c.modality): c.count for c in message.candidates}
    return Collection(
        message.name,
        message.dim,
        message.model_fingerprint,
        {modality: counts.get(modality, 0) for modality in Modality},
        message.shard_count,
        message.create_time.ToDatetime(UTC),
        message.token,
        settings_from_pb(message.settings),
        tuple(message.aliases),
    )


def page_from_pb(message: Any) -> Page:
    """Return the page of a ListCandidatesResponse, of the public API or of the index's."""
    return Page(
        tuple(candidate_from_pb(candidate) for candidate in message.candidates),
        message.next_page_token,
        vectors_from_pb(message.vectors) if message.HasField("vectors") else None,
        message.model_fingerprint,
    )


MAX_PAGE = 1000


def page_size_of(requested: int) -> int:
    """Return the size of a page: 100 for 0, at most 1000 (AIP-158)."""
    if requested < 0:
        raise InvalidField("page_size", f"is {requested}; 0 to {MAX_PAGE} are allowed")
    return min(requested or 100, MAX_PAGE)
