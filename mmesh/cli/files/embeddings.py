"""Files of vectors that were made elsewhere: .npy, or the column `vector` of a .parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from mmesh.candidates import Embedded
from mmesh.cli.files.parquet import batches_of, schema_of, vectors_of
from mmesh.cli.files.sources.items import Given, Item, PassedOver, Unreadable, stamp_of
from mmesh.vectors import DataType

_DATA_TYPES = {
    "float32": DataType.FLOAT32,
    "float16": DataType.FLOAT16,
    "int8": DataType.INT8,
}


class VectorFile:
    """Vectors in the order of the file.

    Raises:
        click.ClickException: it cannot be read, or is no matrix of float32, float16 or int8.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count: int | None = None
        """Its rows; None when that is not cheap to know."""
        if path.suffix.lower() == ".npy":
            self._matrix = self._open_npy()
            self.count, dtype = len(self._matrix), self._matrix.dtype
        elif path.suffix.lower() == ".parquet":
            dtype = self._dtype_of_parquet()
        else:
            raise click.ClickException(f"{path} is neither a .npy nor a .parquet file")
        if dtype.name not in _DATA_TYPES:
            known = ", ".join(_DATA_TYPES)
            raise click.ClickException(f"{path} holds {dtype.name}; use one of {known}")
        self.data_type = _DATA_TYPES[dtype.name]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Yield the rows (dim,)."""
        if self.count is not None:
            yield from self._matrix
            return
        for batch in batches_of(self._path):
            yield from vectors_of(batch, self._path)

    def _open_npy(self) -> NDArray[Any]:
        try:
            matrix = np.load(self._path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise click.ClickException(f"{self._path} cannot be read: {error}") from None
        if not isinstance(matrix, np.ndarray) or matrix.ndim != 2:
            raise click.ClickException(f"{self._path} is no matrix with a row for each candidate")
        return matrix

    def _dtype_of_parquet(self) -> np.dtype[Any]:
        if "vector" not in schema_of(self._path).names:
            raise click.ClickException(f"{self._path} has no column `vector`")
        first = next(batches_of(self._path, 1), None)
        return np.dtype(np.float32) if first is None else vectors_of(first, self._path).dtype


def with_vectors(rows: Iterator[Given], vectors: VectorFile, path: Path) -> Iterator[Given]:
    """Give each row its vector; rows that are no candidates have one too, which is left out."""
    left = iter(vectors)
    number = 0
    for row in rows:
        if isinstance(row, PassedOver):
            yield row
            continue
        number += 1
        vector = next(left, None)
        if isinstance(row, Unreadable):
            yield row
        elif vector is None:
            reason = f"{path.name} has no row {number}"
            yield Unreadable(row.id, reason, hides=False, source=row.source)
        else:
            yield _with_vector(row, vector)
    surplus = sum(1 for _ in left)
    if surplus:
        yield Unreadable(path.name, f"has {surplus} rows more than there are candidates")


def _with_vector(item: Item, vector: NDArray[Any]) -> Item:
    def make() -> Embedded:
        made = item.make()
        return Embedded(made.candidate if isinstance(made, Embedded) else made, vector)

    return Item(item.id, stamp_of(item.stamp, vector.tobytes()), make, item.source)
