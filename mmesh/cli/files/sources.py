"""What `mmesh ingest` reads: folders of pictures, and rows of JSONL, CSV and Parquet files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mmesh.candidates import Candidate
from mmesh.cli.files.parquet import batches_of
from mmesh.content import AttributeValue, Content, Image, Part

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
ROW_FILES = {".jsonl", ".ndjson", ".csv", ".parquet"}
_OURS = ("id", "text", "image", "attributes", "instruction", "target", "vector")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row or file that gives no candidate, and why."""

    id: str
    reason: str


def read_sources(sources: tuple[Path, ...]) -> Iterator[Candidate | Unreadable]:
    """Yield what the sources hold, in an order that is the same every time."""
    for source in sources:
        yield from _read_folder(source) if source.is_dir() else _read_rows(source)


def count_sources(sources: tuple[Path, ...]) -> int | None:
    """Return how many candidates to expect; None when that is not cheap to know."""
    total = 0
    for source in sources:
        if source.is_dir():
            total += sum(1 for _ in _pictures(source))
        elif source.suffix in (".jsonl", ".ndjson"):
            with source.open("rb") as file:
                total += sum(1 for line in file if line.strip())
        else:
            return None
    return total


def check_sources(sources: tuple[Path, ...]) -> None:
    """Raise a usage error for a source of a kind that cannot be read."""
    for source in sources:
        if source.is_file() and source.suffix.lower() not in ROW_FILES:
            known = ", ".join(sorted(ROW_FILES))
            raise click.BadParameter(f"{source} is neither a folder nor one of {known}")


def _pictures(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.suffix.lower() in PICTURES and p.is_file())


def _read_folder(folder: Path) -> Iterator[Candidate | Unreadable]:
    for path in _pictures(folder):
        name = path.relative_to(folder).as_posix()
        try:
            parts: list[Part] = [Image(path.read_bytes())]
            caption = path.with_suffix(".txt")
            if caption.is_file():
                parts.append(caption.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            yield Unreadable(name, str(error))
            continue
        yield Candidate(name, Content(tuple(parts)))


def _read_rows(source: Path) -> Iterator[Candidate | Unreadable]:
    readers = {".csv": _csv_rows, ".parquet": _parquet_rows}
    rows = readers.get(source.suffix.lower(), json_rows)
    for number, row in enumerate(rows(source), start=1):
        name = f"{source.name}:{number}"
        if isinstance(row, Unreadable):
            yield row
            continue
        try:
            yield candidate_of(row, name, source.parent)
        except (OSError, ValueError) as error:
            yield Unreadable(str(row.get("id") or name), str(error))


def json_rows(source: Path) -> Iterator[dict[str, Any] | Unreadable]:
    """Yield the objects of a JSONL file; a line that is none comes as `Unreadable`."""
    with source.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Unreadable(f"{source.name}:{number}", f"is not valid JSON: {error}")
                continue
            if isinstance(row, dict):
                yield row
            else:
                yield Unreadable(f"{source.name}:{number}", "is not a JSON object")


def _csv_rows(source: Path) -> Iterator[dict[str, Any]]:
    with source.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            yield with_attributes({k: v for k, v in row.items() if k is not None and v})


def _parquet_rows(source: Path) -> Iterator[dict[str, Any]]:
    for batch in batches_of(source):
        columns = [name for name in batch.column_names if name != "vector"]
        for row in batch.select(columns).to_struct_array().to_pylist():
            yield with_attributes({name: value for name, value in row.items() if value is not None})


def with_attributes(row: dict[str, Any]) -> dict[str, Any]:
    """Return a flat row with its columns that are not ours as attributes."""
    extra = {name: value for name, value in row.items() if name not in _OURS}
    given = row.get("attributes") or {}
    attributes = json.loads(given) if isinstance(given, str) else given
    return {name: row[name] for name in _OURS if name in row} | {"attributes": attributes | extra}


def candidate_of(row: dict[str, Any], name: str, folder: Path) -> Candidate:
    """Return the candidate of a row; `name` is its id when it has none.

    Raises:
        ValueError: it has neither text nor image, or a value of a type that is not known.
        OSError: its image cannot be read.
    """
    attributes = {
        key: _attribute(key, value) for key, value in (row.get("attributes") or {}).items()
    }
    return Candidate(str(row.get("id") or name), content_of(row, folder), attributes)


def content_of(row: dict[str, Any], folder: Path) -> Content:
    """Return the content of a row: its image, a path relative to `folder`, then its text."""
    parts: list[Part] = []
    image = row.get("image")
    if isinstance(image, bytes):
        parts.append(Image(image))
    elif image:
        parts.append(Image((folder / str(image)).read_bytes()))
    if row.get("text"):
        parts.append(str(row["text"]))
    if not parts:
        raise ValueError("has neither text nor image")
    return Content(tuple(parts))


def _attribute(name: str, value: Any) -> AttributeValue:
    if isinstance(value, list | tuple):
        return tuple(str(one) for one in value)
    if isinstance(value, str | bool | int | float):
        return value
    raise ValueError(f"has attribute {name!r} of type {type(value).__name__}, which is not known")
