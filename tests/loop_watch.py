"""The event loop watchdogs of services that tests start, and what they have to say.

A service logs what computes on its event loop for longer than 50 ms; here the logs are read as
they grow, and the test that was under way fails. `MMESH_TEST_PATIENCE` raises the limit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from tests.effort import patient

LIMIT_MS = 50.0
SERVICES = ("ENCODER", "GATEWAY", "INDEX", "RERANKER")
COMPLAINT = b'"event loop blocked"'
SHOWN = 6
"""Lines of the stack, the innermost."""


def set_limits() -> None:
    """Let all services that this process starts watch their loops."""
    for service in SERVICES:
        os.environ.setdefault(f"MMESH_{service}_LOOP_LIMIT_MS", f"{patient(LIMIT_MS):g}")


class LoopLogs:
    """The logs of services; each line is read once."""

    def __init__(self) -> None:
        self._folders: list[Path] = []
        self._read: dict[Path, int] = {}

    def watch(self, folder: Path) -> None:
        """Read the logs of a folder from now on."""
        self._folders.append(folder)

    def complaints(self) -> list[str]:
        """Return what blocked a loop since the last call: service, CPU seconds and where."""
        logs = (log for folder in self._folders for log in folder.glob("*.log"))
        return [complaint for log in logs for complaint in self._new(log)]

    def _new(self, log: Path) -> Iterator[str]:
        with log.open("rb") as file:
            file.seek(self._read.get(log, 0))
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read[log] = self._read.get(log, 0) + len(line)
                if COMPLAINT in line:
                    said = json.loads(line)
                    where = "\n".join(said["where"].splitlines()[-SHOWN:])
                    yield f"{log.stem} for {said['cpu_seconds']:.3f} s:\n{where}"
