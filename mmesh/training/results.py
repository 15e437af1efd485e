"""What a run has done so far: a row for the base and each stage, in a file beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmesh.training.held_out import METRICS

RESULTS = "results.json"
Figures = dict[str, dict[str, dict[str, float]]]
"""By held-out data set and metric."""


@dataclass(frozen=True, slots=True)
class Row:
    """A stage that is done, or the model that it all began with."""

    stage: str
    steps: int
    digest: str
    loss: float
    """Mean of the last steps; 0 for the base."""
    figures: Figures
    measured: str = ""
    """Digest of what they were measured on, and how."""


def read_rows(out: Path) -> dict[str, Row]:
    """Return the rows in the folder of a run by stage; none where there is no file."""
    path = out / RESULTS
    rows = [Row(**row) for row in json.loads(path.read_text())] if path.is_file() else []
    return {row.stage: row for row in rows}


def write_rows(out: Path, rows: Mapping[str, Row]) -> None:
    """Write the rows of a run into its folder, whole.

    Raises:
        OSError: the file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    new = out / f".{RESULTS}.new"
    new.write_text(json.dumps([asdict(row) for row in rows.values()], indent=1) + "\n")
    os.replace(new, out / RESULTS)


def results_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows for people."""
    sets = sorted({name for row in rows for name in row.figures})
    columns = ["stage", "steps", "loss"]
    columns += [f"{name} {metric}" for name in sets for metric in METRICS]
    lines = []
    for row in rows:
        cells = [row.stage, str(row.steps), f"{row.loss:.3f}" if row.steps else ""]
        for name in sets:
            found = row.figures.get(name, {})
            cells += [
                f"{found[metric]['value']:.3f}" if metric in found else "" for metric in METRICS
            ]
        lines.append(cells)
    return columns, lines
