"""A pytest plugin that stores what the tests cost: `make durations` writes tests/durations.json.

    python -m pytest -p tools.durations --store-durations tests/durations.json

The table has the machine and the commit, sums of seconds for each file and each group of
pytest-xdist, and the slowest tests. tests/grouping.py reads it to begin with what takes longest.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

SLOWEST = 80


class Durations:
    """Adds up the seconds of set-up, call and tear-down of every test."""

    def __init__(self, path: Path, config: pytest.Config) -> None:
        self._path, self._config = path, config
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._groups: dict[str, str] = {}
        self._outcomes: Counter[str] = Counter()
        self._begun, self._load_before = time.monotonic(), round(os.getloadavg()[0], 1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note one phase of a test, and the group that tests/grouping.py put it into."""
        self._seconds[report.nodeid] += report.duration
        self._groups[report.nodeid] = str(dict(report.user_properties).get("group", ""))
        if report.when == "call" or report.outcome != "passed":
            self._outcomes[report.outcome] += 1

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Write the table, unless the run was broken off."""
        if exitstatus in (0, 1):
            self._path.write_text(json.dumps(self.table(), indent=1) + "\n")

    def table(self) -> dict[str, Any]:
        """Return the table as it is stored."""
        files: defaultdict[str, float] = defaultdict(float)
        groups: defaultdict[str, float] = defaultdict(float)
        for name, seconds in self._seconds.items():
            files[name.partition("::")[0]] += seconds
            groups[self._groups[name]] += seconds
        free = groups.pop("", 0.0)
        return {
            "about": self._about(),
            "tests": dict(sorted(self._outcomes.items())),
            "wall_s": round(time.monotonic() - self._begun),
            "sum_s": round(sum(self._seconds.values())),
            "free_s": round(free, 1),
            "groups": rounded(groups),
            "files": rounded(files),
            "slowest": rounded(self._seconds, SLOWEST),
        }

    def _about(self) -> dict[str, object]:
        command = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        return {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "commit": commit,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "workers": self._config.getoption("numprocesses", None) or 1,
            "effort": os.environ.get("MMESH_TEST_EFFORT", "fast"),
            "load_before": self._load_before,
        }


def rounded(seconds: Mapping[str, float], most: int | None = None) -> dict[str, float]:
    """Return what takes longest first, to a tenth of a second."""
    longest = sorted(seconds, key=lambda name: -seconds[name])[:most]
    return {name: round(seconds[name], 1) for name in longest}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the file."""
    parser.addoption("--store-durations", type=Path, help="store what the tests cost in this file")


def pytest_configure(config: pytest.Config) -> None:
    """Measure in the process that hears of all tests."""
    path = config.getoption("--store-durations")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Durations(path, config))
