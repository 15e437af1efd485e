"""What an evaluation will cost, told before it is spent, and whether the mesh can hold the pool."""

from __future__ import annotations

import ipaddress
import shutil
from dataclasses import dataclass
from pathlib import Path

from mmesh.collections import Collection
from mmesh.content import Modality
from mmesh.evaluation.survey import Survey

_MEMINFO = Path("/proc/meminfo")
_FLOAT = 4


@dataclass(frozen=True, slots=True)
class Cost:
    """What is ahead."""

    rows: int
    """Rows of the pool that are not in yet."""
    total: int
    candidates: dict[Modality, int]
    dim: int
    vector_bytes: int
    """Vectors of the whole pool in float32: what an exact index holds in memory."""
    searches: int
    pairs: int
    """Pairs for the judge, at most."""
    rows_per_s: float = 0.0
    """As just measured; 0 before."""

    @property
    def hours(self) -> float:
        """Hours to put the rest of the pool in."""
        return self.rows / self.rows_per_s / 3600 if self.rows_per_s else 0.0

    def __str__(self) -> str:
        kinds = ", ".join(f"{n:,} {m.value}" for m, n in self.candidates.items() if n)
        text = (
            f"{self.total:,} candidates ({kinds}), {size(self.vector_bytes)} of vectors in the "
            f"index ({self.dim} float32 each), {self.searches:,} searches"
        )
        if self.pairs:
            text += f", up to {self.pairs:,} pairs to judge"
        if self.rows and self.rows_per_s:
            text += f"; {self.rows:,} rows to put in, {_duration(self.hours)} at the rate just "
            text += f"measured ({self.rows_per_s:,.0f} a second)"
        return text


class TooMuch(Exception):
    """An evaluation that cannot fit, or takes too long, and was not told to go on all the same."""


def estimate(
    found: Survey,
    collection: Collection,
    done: int,
    searches: int,
    rerank: int,
    rows_per_s: float = 0.0,
) -> Cost:
    """Return what is ahead when `done` rows of the pool are in."""
    return Cost(
        rows=max(0, found.rows - done),
        total=found.total,
        candidates=found.candidates,
        dim=collection.dim,
        vector_bytes=found.total * collection.dim * _FLOAT,
        searches=searches,
        pairs=searches * rerank,
        rows_per_s=rows_per_s,
    )


def obstacles(cost: Cost, collection: Collection, address: str, max_hours: float) -> list[str]:
    """Return why the pool cannot be held or takes too long; empty when nothing is in the way.

    Memory is known only of a mesh on this machine.
    """
    found = []
    limit = collection.settings.limits.max_candidates
    if limit and cost.total > limit:
        found.append(f"the collection may hold {limit:,} candidates")
    free = _available_bytes() if is_local(address) else None
    new_bytes = cost.rows * cost.dim * _FLOAT
    if free is not None and new_bytes > free:
        found.append(f"this machine has {size(free)} of memory to spare")
    if cost.hours > max_hours:
        found.append(f"it would take {_duration(cost.hours)}, more than {max_hours:g} hours")
    return found


def check_room(folder: Path, searches: int, limit: int) -> list[str]:
    """Return why the folder cannot hold the answers; empty when it can."""
    needed = searches * limit * 120  # bytes of a hit in all its files, roughly
    free = shutil.disk_usage(folder).free
    return [] if needed < free else [f"{folder} has {size(free)} free; answers need {size(needed)}"]


def is_local(address: str) -> bool:
    """Tell whether a gateway is on this machine."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def size(count: float) -> str:
    """Return bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _duration(hours: float) -> str:
    return f"{hours * 60:.0f} minutes" if hours < 1.5 else f"{hours:.1f} hours"


def _available_bytes() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = (line for line in lines if line.startswith("MemAvailable:"))
    return int(next(found).split()[1]) * 1024
