"""What the benchmarks of training share: data sets as folders, a log, figures with intervals."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import percent
from debian import Package

from mmesh.training.lite_model import features
from mmesh.training.loop import Step
from mmesh.training.stages import Row


class Log:
    """Prints a line now and then."""

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, file=sys.stderr, flush=True)

    def stage(self, name: str, steps: int, done: int) -> None:
        """Print that a stage begins."""
        self.say(f"{name}: {steps} steps")

    def note(self, step: Step) -> None:
        """Print each fiftieth step."""
        if step.step % 50 == 0:
            self.say(f"  {step.step}: loss {step.loss:.3f}, right {step.accuracy:.2f}")


def figure(row: Row, name: str, metric: str) -> str:
    """Return a figure of a stage in % with its 95 % interval."""
    found = row.figures[name][metric]
    return f"{percent(found['value'])} ({percent(found['low'])} to {percent(found['high'])})"


def value(row: Row, name: str, metric: str, part: str = "value") -> float:
    """Return a figure of a stage, or an end of its interval."""
    return row.figures[name][metric][part]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def write_programs(
    folder: Path, packages: Sequence[Package], kind: str, instruction: str = ""
) -> None:
    """Write descriptions, and synopses that seek them."""
    pool = [{"id": one.name, "text": one.description} for one in packages]
    queries = [
        {
            "id": f"{kind}:{one.name}",
            "text": one.synopsis,
            "target": "text",
            "instruction": instruction,
            "relevant": [one.name],
        }
        for one in packages
    ]
    write_rows(folder / "pool.jsonl", pool)
    write_rows(folder / "queries.jsonl", queries)


def picture_rows(folder: Path, paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Write pictures below a folder and return a row of a pool for each."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, path in enumerate(paths):
        image = f"images/{number:05}.png"
        (folder / image).write_bytes(features.image_bytes(path))
        rows.append({"id": f"p{number:05}", "image": image})
    return rows


def alike(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the ids of pictures in their order by name."""
    found: dict[str, list[str]] = {}
    for number, name in enumerate(names):
        found.setdefault(name, []).append(f"p{number:05}")
    return found
