"""Lines of logs of several processes, merged by time, of which some are chosen."""

from __future__ import annotations

import heapq
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which lines are wanted: those that all of this holds for."""

    services: Sequence[str] = ()
    """What the name of the process begins with; any for none."""
    level: str = LEVELS[0]
    """The least."""
    message: str = ""
    """What it is."""
    ids: frozenset[str] = frozenset()
    """Request ids or trace ids, of which it has one; any for none."""
    slower_ms: float = 0.0
    """What it took, at least."""

    def takes(self, line: Line) -> bool:
        """Tell whether a line is wanted."""
        level = line.get("level")
        return (
            (not self.services or str(line.get("service", "")).startswith(tuple(self.services)))
            and (level not in LEVELS or LEVELS.index(level) >= LEVELS.index(self.level))
            and (not self.message or line.get("message") == self.message)
            and (not self.ids or not self.ids.isdisjoint(map(line.get, ("request_id", "trace_id"))))
            and (not self.slower_ms or _milliseconds(line) >= self.slower_ms)
        )


def chosen_lines(folder: Path, choice: Choice, last: int) -> Sequence[Line]:
    """Return the last lines that are wanted, the oldest first, from all logs in a folder."""
    logs = [_lines_of(path, choice) for path in sorted(folder.glob("*.log"))]
    return deque(heapq.merge(*logs, key=itemgetter("time")), maxlen=last)


def _lines_of(path: Path, choice: Choice) -> Iterator[Line]:
    """Yield what is JSON; others are of programs that are not ours, or of an interpreter's end."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            line = _parsed(text)
            if line is not None and choice.takes(line):
                yield line


def _parsed(text: str) -> Line | None:
    if not text.startswith("{"):
        return None
    try:
        line = json.loads(text)
    except ValueError:  # cut off by the end of a process
        return None
    return line if isinstance(line, dict) and isinstance(line.get("time"), str) else None


def _milliseconds(line: Line) -> float:
    taken = line.get("ms", 0.0)
    return float(taken) if isinstance(taken, int | float) else 0.0
