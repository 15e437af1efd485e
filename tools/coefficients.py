"""Coefficients of `mmesh plan`, by benchmarks/coefficients.toml from stored results."""

import json
import pathlib
import tomllib
from dataclasses import dataclass
from typing import Any

from tools.figures import Figure, show

NAMES = pathlib.Path("benchmarks/coefficients.toml")
TARGET = pathlib.Path("mmesh/capacity/coefficients.json")
"""What the wheel brings along, written by `make docs`."""
DIGITS, SHOWN_DIGITS = 4, 2
_OWN = {"factor", "inverse"}


@dataclass(frozen=True)
class Term:
    """A cell of a stored result, weighted."""

    cell: Figure
    factor: float
    inverse: bool

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "Term":
        """Read a term of the list of names."""
        cell = Figure(**{key: value for key, value in entry.items() if key not in _OWN})
        return cls(cell, entry.get("factor", 1), entry.get("inverse", False))

    @property
    def value(self) -> float:
        """What it adds to the sum."""
        return self.factor / self.cell.value if self.inverse else self.factor * self.cell.value

    @property
    def source(self) -> dict[str, Any]:
        """Benchmark, cell, commit and machine."""
        result = self.cell.result
        machine = result["machine"]
        return {
            "benchmark": self.cell.file,
            "cell": "; ".join(map(str, [self.cell.table, *self.cell.row, self.cell.column])),
            "commit": result["versions"]["commit"],
            "machine": f"{machine['cores']} cores, {machine.get('card') or machine['cpu']}",
        }


def page() -> str:
    """Return all coefficients with their sources, as JSON."""
    return json.dumps(current(), indent=1, ensure_ascii=False) + "\n"


def shown(name: str) -> str:
    """Return a coefficient as pages show it.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in (known := current()):
        raise ValueError(f"no coefficient is named {name!r} in {NAMES}")
    return show(known[name]["value"], SHOWN_DIGITS)


def current() -> dict[str, dict[str, Any]]:
    """Return all of them, as the stored results are now."""
    entries = tomllib.loads(NAMES.read_text("utf-8"))
    return {name: _coefficient(entry) for name, entry in entries.items()}


def _coefficient(entry: dict[str, Any]) -> dict[str, Any]:
    terms = [Term.of(one) for one in entry["terms"]]
    value = sum(term.value for term in terms) + entry.get("constant", 0)
    return {
        "value": float(f"{value:.{DIGITS}g}"),
        "unit": entry["unit"],
        "meaning": entry["meaning"],
        "sources": [term.source for term in terms],
    }
