"""Measured coefficients, each with the benchmark, the machine and the commit that it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

FILE = "coefficients.json"
"""Written by `make docs` from stored results of the benchmarks."""


@dataclass(frozen=True, slots=True)
class Source:
    """A cell of a stored result."""

    benchmark: str
    cell: str
    commit: str
    machine: str


@dataclass(frozen=True, slots=True)
class Coefficient:
    """A measured number, reckoned from one cell or several."""

    name: str
    value: float
    unit: str
    meaning: str
    sources: tuple[Source, ...]

    @property
    def measured_by(self) -> str:
        """Benchmarks, commits and machines, each once, in one line."""
        said = [f"{one.benchmark} at {one.commit} on {one.machine}" for one in self.sources]
        return "; ".join(dict.fromkeys(said))


@dataclass(slots=True)
class Coefficients:
    """All coefficients; it remembers those that were asked for, which a plan names."""

    known: Mapping[str, Coefficient]
    used: dict[str, Coefficient] = field(default_factory=dict)

    @classmethod
    def load(cls) -> Coefficients:
        """Read those that came with this release."""
        text = (resources.files("mmesh.capacity") / FILE).read_text("utf-8")
        return cls.of(json.loads(text))

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Coefficients:
        """Read them from what the file holds."""
        return cls({name: _coefficient(name, entry) for name, entry in entries.items()})

    def __getitem__(self, name: str) -> float:
        """Return the value of a coefficient."""
        self.used[name] = self.known[name]
        return self.known[name].value


def _coefficient(name: str, entry: dict[str, Any]) -> Coefficient:
    sources = tuple(Source(**one) for one in entry["sources"])
    return Coefficient(name, entry["value"], entry["unit"], entry["meaning"], sources)
