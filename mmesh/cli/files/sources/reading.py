"""Sources one after another, each by the reader of its kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from mmesh.cli.files.parquet import import_arro3
from mmesh.cli.files.sources.arrow_rows import arrow_rows
from mmesh.cli.files.sources.attribute_values import ColumnRules
from mmesh.cli.files.sources.csv_rows import Dialect, csv_rows
from mmesh.cli.files.sources.folders import FolderRules, count_pictures, folder_items
from mmesh.cli.files.sources.items import Given, Item, PassedOver, Unreadable, reason_of
from mmesh.cli.files.sources.json_rows import json_rows
from mmesh.cli.files.sources.notes import Notes, Topic
from mmesh.cli.files.sources.row_shape import OURS
from mmesh.cli.files.sources.rows import RowReader
from mmesh.cli.files.sources.text_lines import GZIP, kind_of

JSON = (".jsonl", ".ndjson", ".json")
CSV = (".csv", ".tsv", ".tab")
ARROW = (".parquet", ".pq", ".arrow", ".feather", ".ipc")
_COUNTED = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Reading:
    """How sources are read."""

    columns: ColumnRules = field(default_factory=lambda: ColumnRules({}))
    folders: FolderRules = field(default_factory=FolderRules)
    dialect: Dialect = field(default_factory=Dialect)
    allow_outside: bool = False
    """Read pictures that rows name outside of the folder of their file."""


def check_sources(sources: tuple[Path, ...]) -> None:
    """Raise a usage error for a source of a kind that cannot be read."""
    for source in sources:
        if source.is_file() and kind_of(source) in ARROW:
            import_arro3()  # which says how to install it
        elif source.is_file() and kind_of(source) not in (*JSON, *CSV):
            known = ", ".join((*JSON, *CSV, *ARROW))
            raise click.BadParameter(
                f"{source} is neither a folder nor one of {known}, alone or with {GZIP}"
            )


def read_sources(sources: tuple[Path, ...], reading: Reading, notes: Notes) -> Iterator[Given]:
    """Yield what the sources hold, in an order that is the same every time."""
    for source in sources:
        if source.is_dir():
            yield from _read_folder(source, reading, notes)
        else:
            yield from _read_rows(source, reading, notes)


def count_sources(sources: tuple[Path, ...], reading: Reading) -> int | None:
    """Return about how many candidates to expect; None when that is not cheap to know."""
    total = 0
    for source in sources:
        if source.is_dir():
            total += count_pictures(source, reading.folders)
        elif source.suffix.lower() in _COUNTED:
            with source.open("rb") as file:
                total += sum(1 for line in file if line.strip())
        else:
            return None
    return total


def count_exactly(sources: tuple[Path, ...], reading: Reading) -> int:
    """Return how many vectors the sources need, by reading them, though not their pictures.

    What is refused needs one too; what is passed over does not.
    """
    given = read_sources(sources, reading, Notes())
    return sum(not isinstance(one, PassedOver) for one in given)


def _read_folder(source: Path, reading: Reading, notes: Notes) -> Iterator[Given]:
    found = False
    try:
        for item in folder_items(source, reading.folders, reading.columns, notes):
            found |= isinstance(item, Item)
            yield item
    except OSError as error:
        yield Unreadable(str(source), reason_of(error))
    if not found:
        notes.add(Topic.PASSED_OVER, "folders without a picture", str(source))


def _read_rows(source: Path, reading: Reading, notes: Notes) -> Iterator[Given]:
    reader = RowReader(source, reading.columns, notes, allow_outside=reading.allow_outside)
    number = 0
    try:
        for number, row in enumerate(_rows_of(source, reading, notes), start=1):
            yield reader.item_of(row, number)
    except click.ClickException:
        raise
    except Exception as error:  # whatever a reader raises ends its file only
        where = f"after row {number}: " if number else ""
        yield Unreadable(source.name, f"{where}{reason_of(error)}")
    for column in sorted(reader.unknown_columns if number else ()):
        notes.add(Topic.OPTIONS, "columns that no row has", f"{source.name}: {column}")


def _rows_of(source: Path, reading: Reading, notes: Notes) -> Iterator[dict[str, Any] | Unreadable]:
    kind = kind_of(source)
    if kind in CSV:
        untyped = frozenset((*OURS, *(name.lower() for name in reading.columns.types)))
        return csv_rows(source, notes, reading.dialect, untyped)
    if kind in ARROW:
        return arrow_rows(source, notes)
    return json_rows(source, notes, reading.dialect.encoding)
