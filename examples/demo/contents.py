"""What the demo puts in, and what it searches for: collection.jsonl and queries.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.demo.pictures import cut
from mmesh import Candidate, Content, Image, Search
from mmesh.cli.files.sources.rows import candidate_of
from mmesh.content import Part

COLLECTION = "demo"
LIMIT = 5
_HERE = Path(__file__).parent


def demo_candidates(pictures: Path) -> list[Candidate]:
    """Return the whole collection; `pictures` is the folder of `fetch_pictures`."""
    return [candidate_of(row, row["id"], pictures) for row in _rows("collection.jsonl")]


def searches(pictures: Path) -> Iterator[tuple[dict[str, Any], Search]]:
    """Yield a search of each task shape, with its row.

    The target modality follows from the instruction alone.
    """
    for row in _rows("queries.jsonl"):
        yield (
            row,
            Search(
                COLLECTION,
                _query(row, pictures),
                instruction=row["instruction"],
                limit=LIMIT,
                include_content=True,
            ),
        )


def _rows(name: str) -> Iterator[dict[str, Any]]:
    with (_HERE / name).open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _query(row: dict[str, Any], pictures: Path) -> Content:
    parts: list[Part] = []
    if row["image"]:
        box = tuple(row["crop"]) if "crop" in row else None
        parts.append(Image(cut(pictures / row["image"], box, mirror=row.get("mirror", False))))
    if row["text"]:
        parts.append(row["text"])
    return Content(tuple(parts))
