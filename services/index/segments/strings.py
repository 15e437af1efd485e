"""Strings packed into one block of bytes: a few bytes each, where a Python string takes fifty."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mmesh.errors import DataLoss

COPY_ROWS = 65_536
"""Strings that are gathered at a time, which bounds the memory that it takes."""


class Strings(Sequence[str]):
    """An immutable sequence of n strings: UTF-8 bytes and n + 1 offsets into them."""

    def __init__(self, blob: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        """Take the arrays as they are.

        Raises:
            DataLoss: the offsets do not fit the bytes.
        """
        if (
            not len(offsets)
            or offsets[0] != 0
            or offsets[-1] != len(blob)
            or (np.diff(offsets) < 0).any()
        ):
            raise DataLoss("packed strings have offsets that do not fit their bytes")
        self.blob, self.offsets = blob, offsets
        self._bytes = np.ascontiguousarray(blob).data

    @classmethod
    def pack(cls, strings: Iterable[str]) -> Strings:
        """Pack any strings that have no lone surrogates."""
        encoded = [string.encode() for string in strings]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    def __len__(self) -> int:
        """Return n."""
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> str:  # type: ignore[override]  # no slices
        """Return one string."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        start, end = self.offsets[row : row + 2].tolist()
        return str(self._bytes[start:end], "utf-8")

    def take(self, rows: NDArray[np.integer]) -> list[str]:
        """Return the strings of `rows`, in their order."""
        if not len(self.blob):
            return [""] * len(rows)
        starts, ends = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        packed = self._bytes
        return [str(packed[s:e], "utf-8") for s, e in zip(starts, ends, strict=True)]

    def chosen(self, rows: NDArray[np.integer]) -> Strings:
        """Return the strings of `rows`, packed."""
        parts = [self._gather(rows[i : i + COPY_ROWS]) for i in range(0, len(rows), COPY_ROWS)]
        return concatenate(parts)

    def _gather(self, rows: NDArray[np.integer]) -> Strings:
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Strings(self.blob[places], offsets)

    @property
    def size_bytes(self) -> int:
        """Bytes in memory."""
        return self.blob.nbytes + self.offsets.nbytes


def concatenate(parts: Sequence[Strings]) -> Strings:
    """Return the strings of all parts, in order."""
    if not parts:
        return Strings.pack(())
    ends = np.cumsum([0, *(len(part.blob) for part in parts)])
    moved = [part.offsets[1:] + start for part, start in zip(parts, ends[:-1], strict=True)]
    offsets = np.concatenate([np.zeros(1, np.int64), *moved])
    return Strings(np.concatenate([part.blob for part in parts]), offsets)
