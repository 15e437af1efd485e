"""What processes and their children use, read from /proc."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
_TIMES = slice(11, 15)
"""Places in `stat`, after the name, of the times of a process and of its children that ended."""


def family(processes: list[int]) -> set[int]:
    """Return the ids of processes and of all that descend from them."""
    found: set[int] = set()
    left = list(processes)
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += _children(pid)
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for task in (PROC / str(pid) / "task").iterdir():
            children += map(int, (task / "children").read_text().split())
    except OSError:  # it ended meanwhile
        return children
    return children


def cpu_seconds(processes: list[int]) -> float:
    """Return the CPU seconds that processes and their children have used."""
    return sum(map(_cpu_seconds, family(processes)))


def _cpu_seconds(pid: int) -> float:
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[_TIMES])) / TICKS


def memory_bytes(processes: list[int]) -> int:
    """Return the bytes of processes and their children; what several share counts once."""
    return sum(map(_memory_bytes, family(processes)))


def _memory_bytes(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    sizes = [line.split()[1] for line in lines if line.startswith("Pss:")]
    return 1024 * sum(map(int, sizes))
