"""Ids of candidates by row, and rows by id, without a dict of a million strings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mmesh.errors import DataLoss
from services.index.segments.strings import Strings

Hashes = NDArray[np.uint64]
RowNumbers = NDArray[np.int64]


def hash_of(candidate_id: str) -> int:
    """Return the first 8 bytes of the SHA-256 of an id, little-endian: its low byte is the slot."""
    return int.from_bytes(hashlib.sha256(candidate_id.encode()).digest()[:8], "little")


def hashes_of(ids: Iterable[str]) -> Hashes:
    """Return `hash_of` for each id."""
    return np.array([hash_of(candidate_id) for candidate_id in ids], np.uint64)


class IdTable:
    """The ids of n rows; where an id is there twice, its last row counts."""

    def __init__(self, ids: Strings, hashes: Hashes, order: NDArray[np.uint32]) -> None:
        """Take packed ids, their sorted hashes, and the row of each hash.

        Raises:
            DataLoss: the three do not fit each other.
        """
        n = len(ids)
        if len(hashes) != n or len(order) != n or (n and int(order.max()) >= n):
            raise DataLoss("the ids of a segment do not fit their hashes")
        self._ids, self._hashes, self._order = ids, hashes, order

    @classmethod
    def of(cls, ids: Strings, hashes: Hashes) -> IdTable:
        """Index packed ids by their hashes, which are given in order of rows."""
        order = np.argsort(hashes, kind="stable")
        return cls(ids, hashes[order], order.astype(np.uint32))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> IdTable:
        """Return what `arrays` stored."""
        ids = Strings(arrays["ids"], arrays["id_offsets"])  # type: ignore[arg-type]  # checked there
        return cls(ids, arrays["hashes"], arrays["order"])  # type: ignore[arg-type]  # checked there

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the table as arrays that `from_arrays` takes."""
        return {
            "ids": self._ids.blob,
            "id_offsets": self._ids.offsets,
            "hashes": self._hashes,
            "order": self._order,
        }

    def __len__(self) -> int:
        """Return n."""
        return len(self._ids)

    @property
    def packed(self) -> Strings:
        """The ids by row."""
        return self._ids

    @property
    def size_bytes(self) -> int:
        """Bytes in memory."""
        return self._ids.size_bytes + self._hashes.nbytes + self._order.nbytes

    def take(self, rows: NDArray[np.integer]) -> list[str]:
        """Return the ids of `rows`."""
        return self._ids.take(rows)

    def hashes(self) -> Hashes:
        """Return the hashes in order of rows."""
        by_row = np.empty(len(self), np.uint64)
        by_row[self._order] = self._hashes
        return by_row

    def find(self, hashes: Hashes, ids: Sequence[str]) -> RowNumbers:
        """Return the row of each id, -1 where it is absent; `hashes` are those of `ids`."""
        found = np.full(len(ids), -1, np.int64)
        places = np.searchsorted(self._hashes, hashes, side="right") - 1
        waiting = np.flatnonzero(places >= 0)
        waiting = waiting[self._hashes[places[waiting]] == hashes[waiting]]
        rows = self._order[places[waiting]].astype(np.int64)
        same = np.array(
            [ids[w] == stored for w, stored in zip(waiting.tolist(), self.take(rows), strict=True)],
            np.bool_,
        )
        found[waiting[same]] = rows[same]
        for other in waiting[~same].tolist():  # two ids of one hash
            found[other] = self._walk(int(places[other]) - 1, hashes[other], ids[other])
        return found

    def _walk(self, place: int, wanted: np.uint64, candidate_id: str) -> int:
        while place >= 0 and self._hashes[place] == wanted:
            if self._ids[int(self._order[place])] == candidate_id:
                return int(self._order[place])
            place -= 1
        return -1
