"""Rows of Arrow's columns: Parquet, Feather, and Arrow IPC as a file or a stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmesh.cli.files.parquet import import_arro3
from mmesh.cli.files.sources.arrow_process import ROWS, ROWS_WITH_BYTES, holds_bytes
from mmesh.cli.files.sources.arrow_stream import in_slices, record_batches
from mmesh.cli.files.sources.items import FileEnded
from mmesh.cli.files.sources.notes import Notes, Topic
from mmesh.cli.files.sources.row_shape import check_columns

_INDEX_OF_PANDAS = "__index_level_"
_EXPORT = b"mmesh.format"


def arrow_rows(path: Path, notes: Notes) -> Iterator[dict[str, Any]]:
    """Yield the rows without what is null.

    Raises:
        FileEnded: the rest cannot be read.
    """
    core, arrow = import_arro3()
    with record_batches(path, arrow) as reader:
        if _EXPORT in (reader.schema.metadata or {}):
            raise FileEnded("was made by `mmesh export`; `mmesh import` reads it")
        names = [name for name in reader.schema.names if not name.startswith(_INDEX_OF_PANDAS)]
        check_columns(names)
        if len(names) < len(reader.schema.names):
            notes.add(Topic.LEFT_OUT, "index of pandas", path.name)
        maps = [f.name for f in reader.schema if f.name in names and core.DataType.is_map(f.type)]
        wide = any(holds_bytes(field.type) for field in reader.schema)
        for batch in in_slices(reader, ROWS_WITH_BYTES if wide else ROWS):
            columns = {name: _values(batch.column(name), name, notes) for name in names}
            columns |= {name: _objects(columns[name]) for name in maps}
            for number in range(batch.num_rows):
                cells = ((name, values[number]) for name, values in columns.items())
                yield {name: value for name, value in cells if value is not None}


def _values(column: Any, name: str, notes: Notes) -> list[Any]:
    """Return the values of a column; those that Python has no value for are left out."""
    try:
        return list(column.to_pylist())
    except Exception:  # the reader has no errors of its own
        return [_value(column, number, name, notes) for number in range(len(column))]


def _value(column: Any, number: int, name: str, notes: Notes) -> Any:
    try:
        return column[number].as_py()
    except Exception:
        notes.add(Topic.LEFT_OUT, "values that cannot be read", name)
        return None


def _objects(pairs: list[Any]) -> list[dict[str, Any] | None]:
    """Return maps, which come as lists of keys with values, as objects."""
    return [None if one is None else {str(key): value for key, value in one} for one in pairs]
