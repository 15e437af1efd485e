"""How much memory a process may use, uses, and would need."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mmesh.errors import MemoryFull
from mmesh.serving.trimming import trim

SHARE = 0.9
"""Share of the memory of the container, or of the machine, that is used when no limit is set."""
ROW_BYTES = 160
"""Bytes of a row besides its vector: id, attributes, hash, columns."""
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """A limit on the memory of this process, in bytes."""

    limit: int

    @classmethod
    def of(cls, limit: int) -> MemoryBudget:
        """Return the budget of `limit` bytes; 0 takes a share of what the container may use."""
        return cls(limit or int(SHARE * available_bytes()))

    def check(self, collection: str, need: int) -> None:
        """Raise `MemoryFull` unless `need` more bytes for `collection` fit."""
        if process_bytes() + need > self.limit:
            trim()  # freed memory that malloc keeps is not in use
        used = process_bytes()
        if used + need > self.limit:
            raise MemoryFull(
                f"collection {collection!r} needs about {need >> 20} MiB more; {used >> 20} of "
                f"{self.limit >> 20} MiB are in use. Add shards, or raise the limit",
                {"collection": collection, "needed_bytes": str(need), "limit": str(self.limit)},
            )


def load_bytes(rows: int, dim: int) -> int:
    """Return the bytes that loading `rows` rows takes at its peak, before segments are built."""
    return rows * (dim * 4 + ROW_BYTES)


def process_bytes() -> int:
    """Return the resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
    """Return the bytes that the container may use, or else that the machine has."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [text for path in _CGROUPS if (text := _read(path)).isdigit()]
    return min([machine, *map(int, limits)])


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
