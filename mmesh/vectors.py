"""Matrices of vectors to wire bytes and back: the one place that knows byte order.

numpy, slow to import, is loaded by the first function that needs it: many programs have no vectors.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from mmesh.errors import InvalidVector

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatMatrix = NDArray[np.float32]
else:

    def __getattr__(name: str) -> object:
        """Return `FloatMatrix`, for those who import it when they run."""
        if name != "FloatMatrix":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import numpy as np
        from numpy.typing import NDArray

        return NDArray[np.float32]


MAX_DIM = 16384


class DataType(enum.Enum):
    """Element types on the wire."""

    FLOAT32 = "<f4"
    FLOAT16 = "<f2"
    INT8 = "i1"

    @property
    def width(self) -> int:
        """Bytes of one element."""
        return int(self.value[-1])


INT8_SCALE = 127.0


def pack(matrix: FloatMatrix, data_type: DataType = DataType.FLOAT32) -> bytes:
    """Return the rows of `matrix` (n, dim) as bytes; int8 stands for value / 127."""
    import numpy as np

    if data_type is DataType.INT8:
        matrix = np.clip(np.rint(matrix * INT8_SCALE), -127, 127)
    return np.ascontiguousarray(matrix, dtype=data_type.value).tobytes()


def unpack(data: bytes, dim: int, data_type: DataType = DataType.FLOAT32) -> FloatMatrix:
    """Return wire bytes as float32 (n, dim); without a copy for float32, so read-only then.

    Raises:
        InvalidVector: the bytes are not a whole number of rows, or dim is out of 1..16384.
    """
    import numpy as np

    if not 1 <= dim <= MAX_DIM:
        raise InvalidVector("vectors.dim", f"is {dim}; 1 to {MAX_DIM} are allowed")
    if len(data) % (dim * data_type.width):
        raise InvalidVector("vectors.values", f"has {len(data)} bytes, no whole number of rows")
    matrix = np.frombuffer(data, dtype=data_type.value).reshape(-1, dim)
    if data_type is DataType.INT8:
        return (matrix / np.float32(INT8_SCALE)).astype(np.float32)
    return matrix.astype(np.float32, copy=False)


def unit_rows(matrix: FloatMatrix, path: str = "vectors") -> FloatMatrix:
    """Return the rows of `matrix` brought to unit length.

    Raises:
        InvalidVector: a row holds NaN or infinity, or has zero length; its number is in the path.
    """
    import numpy as np

    norms = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
    if len(norms) and not 0 < norms.min() <= norms.max() < np.inf:  # false for NaN, too
        row = int((~np.isfinite(norms) | (norms == 0)).argmax())
        problem = "has zero length" if norms[row] == 0 else "is not finite"
        raise InvalidVector(f"{path}[{row}]", f"{problem}; it has no direction to search by")
    unit: FloatMatrix = (matrix / norms[:, None]).astype(np.float32)
    return unit
