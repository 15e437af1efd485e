"""Matrices of vectors to protobuf and back: packed little-endian bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmesh.api.vector.v1 import vector_pb2
from mmesh.errors import InvalidVector
from mmesh.vectors import INT8_SCALE, DataType, pack, unpack
from mmesh.wire.enums import by_number, enum_from_pb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmesh.vectors import FloatMatrix

_DATA_TYPES = {
    DataType.FLOAT32: vector_pb2.DATA_TYPE_FLOAT32,
    DataType.FLOAT16: vector_pb2.DATA_TYPE_FLOAT16,
    DataType.INT8: vector_pb2.DATA_TYPE_INT8,
}
_DATA_TYPE_OF = by_number(_DATA_TYPES)


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
    import numpy as np

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
