"""What the commands need of Parquet, whose reader is an extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmesh.cli.files.sources.arrow_stream import in_slices, record_batches
from mmesh.cli.files.sources.items import FileEnded

if TYPE_CHECKING:
    from numpy.typing import NDArray


def import_arro3() -> tuple[Any, Any]:
    """Return the modules `arro3.core` and `arro3.io`, or say how to install them."""
    try:
        import arro3.core
        import arro3.io
    except ImportError:
        raise click.ClickException("Parquet needs `pip install 'mmesh[parquet]'`") from None
    return arro3.core, arro3.io


def schema_of(path: Path) -> Any:
    """Return the schema of a file.

    Raises:
        click.ClickException: it is no Parquet file, or not all of one.
    """
    with _opened(path) as reader:
        return reader.schema


def batches_of(path: Path, most: int = 1024) -> Iterator[Any]:
    """Yield the record batches of a file, of so many rows at most; errors are as in `schema_of`."""
    with _opened(path) as reader:
        yield from in_slices(reader, most)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    _, arrow = import_arro3()
    try:
        with record_batches(path, arrow) as reader:
            yield reader
    except FileEnded as error:
        raise click.ClickException(f"{path} {error}") from None


def vectors_of(batch: Any, path: Path) -> NDArray[Any]:
    """Return the column `vector` of a batch as (n, dim)."""
    import numpy as np

    core, _ = import_arro3()
    column = batch.column("vector")
    flat = core.list_flatten(column)
    is_even = core.DataType.is_fixed_size_list(column.type) or not np.ptp(
        np.diff(core.list_offsets(column).to_numpy())
    )
    if column.null_count or flat.null_count or not is_even:
        raise click.ClickException(f"{path} has rows without a vector, or of different widths")
    return np.asarray(flat.to_numpy()).reshape(batch.num_rows, -1)
