"""A process that reads a Parquet or Arrow file and writes it to stdout as an Arrow stream.

The reader aborts its process on some damaged files. This way that ends the file, and nothing else.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import IO, Any

from mmesh.cli.files.sources.items import FileEnded, reason_of
from mmesh.cli.files.sources.text_lines import is_packed, kind_of, opened

DAMAGED = "is damaged: its reader was ended by it"
ROWS, ROWS_WITH_BYTES = 1024, 8
"""Rows of a batch, which is in memory as a whole."""
_PARQUET, _ARROW, _FEATHER_1, _STREAM = b"PAR1", b"ARROW1", b"FEA1", b"\xff" * 4
_PANIC = "PanicException"
"""What the reader raises where it does not abort; it is no `Exception`."""
_PARQUET_SUFFIXES = {".parquet", ".pq"}


def main() -> None:
    """Write what the file of the first argument holds; say on stderr what ends it early."""
    path = Path(sys.argv[1])
    try:
        with open(1, "wb", buffering=0, closefd=False) as out:
            _copy(path, out)
    except BrokenPipeError:
        sys.exit(1)
    except FileEnded as error:
        sys.exit(str(error))
    except Exception as error:  # the reader has no errors of its own
        sys.exit(f"cannot be read: {reason_of(error)}")
    except BaseException as error:
        if type(error).__name__ != _PANIC:
            raise
        sys.exit(DAMAGED)


def _copy(path: Path, out: IO[bytes]) -> None:
    from arro3.io import write_ipc_stream

    with _unpacked(path) as file:
        write_ipc_stream(_reader(file, path), out)


def _unpacked(path: Path) -> IO[bytes]:
    """Return an open file; one that is compressed by gzip is read into memory as a whole."""
    if not is_packed(path):
        return path.open("rb")
    with opened(path) as file:
        return io.BytesIO(file.read())


def _reader(file: IO[bytes], path: Path) -> Any:
    from arro3 import io as arrow

    head, size = file.read(len(_ARROW)), file.seek(0, io.SEEK_END)
    file.seek(max(0, size - len(_PARQUET)))
    tail = file.read()
    file.seek(0)
    if head.startswith(_FEATHER_1):
        raise FileEnded("is of the first version of Feather; write it anew with another version")
    if head.startswith(_PARQUET) and tail != _PARQUET:  # the reader would panic
        raise FileEnded("is a Parquet file that is cut short")
    if kind_of(path) in _PARQUET_SUFFIXES and not head.startswith(_PARQUET):
        raise FileEnded("is not a Parquet file")
    if not head.startswith((_PARQUET, _ARROW, _STREAM)):  # a reader would take it for a length
        raise FileEnded("is neither Parquet nor Arrow")
    if head.startswith(_PARQUET):
        schema = arrow.read_parquet(file).schema
        file.seek(0)
        wide = any(holds_bytes(field.type) for field in schema)
        return arrow.read_parquet(file, batch_size=ROWS_WITH_BYTES if wide else ROWS)
    return arrow.read_ipc(file) if head.startswith(_ARROW) else arrow.read_ipc_stream(file)


def holds_bytes(kind: Any) -> bool:
    """Tell whether values of a type may be pictures."""
    name = str(kind)
    return "Binary" in name or "Struct" in name


if __name__ == "__main__":
    main()
