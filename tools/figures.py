"""Measured figures that pages cite: named in docs/figures.toml, read from benchmarks/results.

An entry is:

    [search-ms]
    file = "overhead"                            # benchmarks/results/overhead.json
    table = "one client, one call at a time"     # its table, or the section of a GPU's results
    row = ["Search, through the gateway"]        # what the row begins with
    column = "ms, median"
    digits = 2                                   # that count
"""

import json
import math
import pathlib
import tomllib
from dataclasses import dataclass
from functools import cache
from typing import Any

NAMES = pathlib.Path("docs/figures.toml")
RESULTS = pathlib.Path("benchmarks/results")


@dataclass(frozen=True)
class Figure:
    """A cell of a stored result, and how it is shown."""

    file: str
    table: str
    row: list[str | int]
    column: str
    digits: int = 3
    scale: float = 1

    @property
    def result(self) -> dict[str, Any]:
        """The stored result that the figure is in."""
        return _read(RESULTS / f"{self.file}.json")

    @property
    def shown(self) -> str:
        """The figure as pages show it."""
        return show(self.value * self.scale, self.digits)

    @property
    def value(self) -> float:
        """The figure as it is stored.

        Raises:
            ValueError: the stored result has no such cell.
        """
        for row in _rows_of(self.result, self.table):
            begins = list(row.values())[: len(self.row)]
            if begins == self.row and self.column in row:
                return float(row[self.column])
        raise ValueError(f"{self.file}.json has no {self.column!r} in {self.table!r}, {self.row}")


def show(value: float, digits: int) -> str:
    """Return a number with so many digits that count, thousands apart."""
    rounded = float(f"{value:.{digits - 1}e}")
    magnitude = math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{rounded:,.{max(0, digits - 1 - magnitude)}f}"


def figures() -> dict[str, Figure]:
    """Return all figures by name."""
    entries = tomllib.loads(NAMES.read_text("utf-8"))
    return {name: Figure(**entry) for name, entry in entries.items()}


@cache
def _read(path: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _rows_of(result: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the rows of a table, or of a section of a GPU's results and its gates, by column.

    The table `facts` has the facts, each a row with its name and its `value`.
    """
    if name == "facts":
        return [{"fact": fact, "value": value} for fact, value in result["facts"].items()]
    for table in result.get("tables", []):
        if table["title"] == name:
            return [dict(zip(table["header"], row, strict=True)) for row in table["rows"]]
    section: dict[str, Any] = result.get("sections", {}).get(name, {})
    return [*section.get("rows", []), *section.get("gates", [])]


def page() -> str:
    """Return where each figure comes from."""
    head = (
        "# Figures\n\nEvery figure that a page cites, as `make docs` read it from\n"
        "[benchmarks/results](../../benchmarks/results). What ends in `-dirty` was measured with\n"
        "changes that were not committed.\n\n"
        "| figure | value | measured by | table, row, column | commit | machine |\n"
        "|---|---|---|---|---|---|\n"
    )
    return head + "".join(_line(name, one) for name, one in sorted(figures().items()))


def _line(name: str, figure: Figure) -> str:
    script = f"benchmarks/{figure.file}.py"
    if not pathlib.Path(script).exists():
        script = "benchmarks/gpu/check.sh"
    cell = "; ".join(map(str, [figure.table, *figure.row, figure.column]))
    machine, versions = figure.result["machine"], figure.result["versions"]
    what = machine.get("card") or machine["cpu"]
    cells = [
        name,
        figure.shown,
        f"`{script}`",
        cell,
        f"`{versions['commit']}`",
        f"{machine['cores']} cores, {what}",
    ]
    return f"| {' | '.join(cells)} |\n"
