"""Sets of rows as packed bits, low bit first: what FAISS selectors read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
RowNumbers = NDArray[np.int64]


def all_rows(n: int) -> Bits:
    """Return a set of all of n rows."""
    bits = np.full(-(-n // 8), 255, np.uint8)
    if n % 8:
        bits[-1] = (1 << n % 8) - 1
    return bits


def pack(mask: NDArray[np.bool_]) -> Bits:
    """Return the set of the rows where `mask` is true."""
    return np.packbits(mask, bitorder="little")


def count(bits: Bits) -> int:
    """Return the number of rows in the set."""
    whole = len(bits) // 8 * 8
    words = np.bitwise_count(bits[:whole].view(np.uint64)).sum(dtype=np.int64)
    return int(words + np.bitwise_count(bits[whole:]).sum(dtype=np.int64))


def rows_of(bits: Bits, n: int) -> RowNumbers:
    """Return the rows in the set, rising."""
    return np.flatnonzero(np.unpackbits(bits, count=n, bitorder="little"))


def has(bits: Bits, rows: RowNumbers) -> NDArray[np.bool_]:
    """Return for each row, of any shape, whether the set has it; -1 is in no set."""
    inside: NDArray[np.bool_] = ((bits[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1) == 1
    return inside & (rows >= 0)


def remove(bits: Bits, rows: RowNumbers) -> int:
    """Take rows out of the set, in place; return how many were in it."""
    rows = np.unique(rows)
    rows = rows[has(bits, rows)]
    np.bitwise_and.at(bits, rows >> 3, ~(1 << (rows & 7)).astype(np.uint8))
    return len(rows)
