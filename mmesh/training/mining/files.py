"""Parquet files of mined negatives: a row for each query, and how they were mined.

Equal rows and metadata are equal bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

from mmesh.errors import FailedPrecondition, MmeshError
from mmesh.training.mining.live import Mined

FORMAT = 1
ROWS = 1024
_KEY = "mmesh.negatives"
_MAGIC = b"PAR1"
_PANIC = "PanicException"
"""What the reader raises on some damaged files; it is no `Exception`."""


@dataclass(frozen=True, slots=True)
class Row:
    """The negatives of one query, as the file has them."""

    query: str
    wanted: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, mined: Mined) -> Row:
        """Return the row of a query; what depends on the last digits of scores is not in it."""
        drawn = mined.negatives
        return cls(
            mined.question.query.id,
            mined.wanted.value,
            mined.question.positives,
            tuple(one.id for one in drawn),
            tuple(one.kind.value for one in drawn),
        )


def write_negatives(path: Path, rows: Iterable[Row], facts: dict[str, Any]) -> None:
    """Write a file that appears when it is whole.

    Raises:
        FailedPrecondition: the Parquet library is not installed.
        OSError: it cannot be written.
    """
    core, io = _import_arro3()
    schema = _schema(core)
    part = path.with_name(path.name + ".part")
    batches = (_batch(core, schema, some) for some in _grouped(rows))
    # One key alone: the writer has no order of several.
    metadata = {_KEY: json.dumps({"format": FORMAT} | facts, sort_keys=True)}
    try:
        io.write_parquet(
            core.RecordBatchReader.from_batches(schema, batches),
            str(part),
            key_value_metadata=metadata,
            compression="zstd(3)",
        )
        os.replace(part, path)
    except OSError:
        raise
    except Exception as error:  # the writer has no errors of its own
        raise OSError(f"{path} cannot be written: {error}") from None
    finally:
        part.unlink(missing_ok=True)


def read_facts(path: Path) -> dict[str, Any]:
    """Return what a file says of how it was mined.

    Raises:
        FailedPrecondition: it is no file of mined negatives.
    """
    with _refusing_damage(path):
        found = json.loads(_reader(path).schema.metadata_str.get(_KEY, "{}"))
    if found.pop("format", None) != FORMAT:
        raise FailedPrecondition(f"{path} was not written by this version of `mmesh negatives`")
    facts: dict[str, Any] = found
    return facts


def read_negatives(path: Path) -> Iterator[Row]:
    """Yield the rows of a file.

    Raises:
        FailedPrecondition: it is no file of mined negatives.
    """
    read_facts(path)
    with _refusing_damage(path):
        for batch in _reader(path):
            for values in batch.to_struct_array().to_pylist():
                lists = {name: tuple(v) for name, v in values.items() if isinstance(v, list)}
                yield Row(**(values | lists))


@contextmanager
def _refusing_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except MmeshError:
        raise
    except BaseException as error:  # the reader has no errors of its own, and some are panics
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        raise FailedPrecondition(f"{path} is damaged and cannot be read") from None


def _reader(path: Path) -> Any:
    _, io = _import_arro3()
    try:
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
            file.seek(max(0, path.stat().st_size - len(_MAGIC)))
            if head != _MAGIC or file.read() != _MAGIC:  # the reader itself would panic
                raise FailedPrecondition(f"{path} is not a Parquet file, or is cut short")
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be read: {error.strerror or error}") from None
    return io.read_parquet(str(path))


def _grouped(rows: Iterable[Row]) -> Iterator[list[Row]]:
    some: list[Row] = []
    for row in rows:
        some.append(row)
        if len(some) == ROWS:
            yield some
            some = []
    if some:
        yield some


def _schema(core: Any) -> Any:
    text = core.DataType.utf8()
    listed = core.DataType.list(core.Field("item", text, nullable=False))
    kinds = {one.name: text if one.type == "str" else listed for one in fields(Row)}
    return core.Schema([core.Field(name, kind, nullable=False) for name, kind in kinds.items()])


def _batch(core: Any, schema: Any, rows: list[Row]) -> Any:
    columns = [_column(core, schema, name, rows) for name in schema.names]
    return core.RecordBatch.from_arrays(columns, schema=schema)


def _column(core: Any, schema: Any, name: str, rows: list[Row]) -> Any:
    values, text = [getattr(row, name) for row in rows], core.DataType.utf8()
    if isinstance(values[0], str):
        return core.Array(values, text)
    ends = core.Array(list(accumulate(map(len, values), initial=0)), core.DataType.int32())
    flat = core.Array([one for some in values for one in some], text)
    return core.list_array(ends, flat, type=schema.field(name).type)


def _import_arro3() -> tuple[Any, Any]:
    try:
        import arro3.core
        import arro3.io
    except ImportError:
        raise FailedPrecondition("Parquet needs `pip install 'mmesh[parquet]'`") from None
    return arro3.core, arro3.io
