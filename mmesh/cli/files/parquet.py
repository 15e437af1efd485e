"""What the commands need of Parquet, whose reader is an extra."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAGIC = b"PAR1"


def import_arro3() -> tuple[Any, Any]:
    """Return the modules `arro3.core` and `arro3.io`, or say how to install them."""
    try:
        import arro3.core
        import arro3.io
    except ImportError:
        raise click.ClickException("Parquet needs `pip install 'mmesh[parquet]'`") from None
    return arro3.core, arro3.io


def open_parquet(path: Path, batch_size: int = 1024) -> Any:
    """Return a reader of record batches.

    Raises:
        click.ClickException: it is no Parquet file, or not all of one.
    """
    _, io = import_arro3()
    with path.open("rb") as file:
        head = file.read(len(_MAGIC))
        file.seek(max(0, path.stat().st_size - len(_MAGIC)))
        if head != _MAGIC or file.read() != _MAGIC:  # the reader itself would panic
            raise click.ClickException(f"{path} is not a Parquet file, or is cut short")
    try:
        return io.read_parquet(str(path), batch_size=batch_size)
    except Exception as error:  # the reader has no errors of its own
        raise click.ClickException(f"{path} cannot be read: {error}") from None


def batches_of(path: Path, batch_size: int = 1024) -> Iterator[Any]:
    """Yield the record batches of a file; errors are as in `open_parquet`."""
    reader = iter(open_parquet(path, batch_size))
    while True:
        try:
            batch = next(reader, None)
        except Exception as error:
            raise click.ClickException(f"{path} cannot be read: {error}") from None
        if batch is None:
            return
        yield batch


def vectors_of(batch: Any, path: Path) -> NDArray[Any]:
    """Return the column `vector` of a batch as (n, dim)."""
    import numpy as np

    core, _ = import_arro3()
    column = batch.column("vector")
    flat = core.list_flatten(column)
    if column.null_count or flat.null_count or len(flat) % batch.num_rows:
        raise click.ClickException(f"{path} has rows without a vector, or of different widths")
    return np.asarray(flat.to_numpy()).reshape(batch.num_rows, -1)
