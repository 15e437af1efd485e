"""Time compression: the rules of k8s/ with every duration divided by one factor.

What is compressed: windows, offsets and `for` of all rules, the time after which Prometheus takes
a value for stale, and the interval of snapshots. The interval of scrapes and evaluations stands
for INTERVAL_S * FACTOR seconds, twice what k8s/ asks for. What is not: thresholds (a second of
latency, a minute of staleness), and the times of the mesh itself, such as deadlines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.effort import patient
from tools.k8s.rules import rule_files

FACTOR = 60
"""A second of a test stands for a minute."""
INTERVAL_S = 0.5
"""Between scrapes, and between evaluations of rules."""
NOTICE_S = 5.0
"""What the mesh itself may take, uncompressed, until its metrics show a fault or its end."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+)([smhd])")
_WINDOW = re.compile(r"\[(\d+[smhd])\]|\boffset (\d+[smhd])")


def seconds_of(duration: str) -> float:
    """Return the seconds of a duration such as 5m."""
    found = _DURATION.fullmatch(duration)
    assert found, f"{duration!r} is no duration that is known here"
    return int(found[1]) * _SECONDS[found[2]]


def compressed(seconds: float) -> str:
    """Return a duration of Prometheus for what is so long in a cluster."""
    return f"{round(seconds / FACTOR * 1000)}ms"


def write_rules(folder: Path) -> list[Path]:
    """Write the compressed rules, and return their files."""
    written = []
    for source in rule_files():
        rules = yaml.safe_load(source.read_text())
        for rule in (rule for group in rules["groups"] for rule in group["rules"]):
            rule["expr"] = _WINDOW.sub(_shorter, rule["expr"])
            if "for" in rule:
                rule["for"] = compressed(seconds_of(rule["for"]))
        written.append(folder / source.name)
        written[-1].write_text(yaml.safe_dump(rules))
    return written


def _shorter(window: re.Match[str]) -> str:
    return _DURATION.sub(lambda found: compressed(seconds_of(found[0])), window[0])


class Alerts:
    """What the rules say of their alerts: how bad they are, and when they are due."""

    def __init__(self) -> None:
        rules = list(_rules())
        self._rules = {rule["alert"]: rule for rule in rules if "alert" in rule}
        self._recorded = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}

    def severity(self, name: str) -> str:
        return str(self._rules[name]["labels"]["severity"])

    @property
    def names(self) -> set[str]:
        return set(self._rules)

    @property
    def pages(self) -> set[str]:
        return {name for name in self._rules if self.severity(name) == "page"}

    def fires_within_s(self, name: str) -> float:
        """Return the longest time, compressed, from a fault to the alert."""
        rule = self._rules[name]
        stated_s = seconds_of(rule.get("for", "0s")) + self._window_s(rule["expr"])
        return patient(stated_s / FACTOR + 3 * INTERVAL_S + NOTICE_S)

    def resolves_within_s(self, name: str) -> float:
        """Return the longest time, compressed, from the mend to the end of the alert."""
        stated_s = self._window_s(self._rules[name]["expr"])
        return patient(stated_s / FACTOR + 3 * INTERVAL_S + NOTICE_S)

    def _window_s(self, expression: str) -> float:
        """Return the shortest window: of several that must hold at once, it ends first."""
        windows = [first or second for first, second in _WINDOW.findall(expression)]
        for name, recorded in self._recorded.items():
            if name in expression:
                windows += [first or second for first, second in _WINDOW.findall(recorded)]
        return min(map(seconds_of, windows), default=0.0)


def _rules() -> Iterator[dict[str, Any]]:
    for path in rule_files():
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]
