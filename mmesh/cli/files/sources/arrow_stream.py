"""Parquet and Arrow files as streams of record batches, which another process reads.

The reader aborts its process on some damaged files, and panics on others.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mmesh.cli.files.sources.arrow_process import DAMAGED
from mmesh.cli.files.sources.items import FileEnded

_SAID = 2000
"""Bytes at the end of what the reading process said that are looked at."""


@contextmanager
def record_batches(path: Path, arrow: Any) -> Iterator[Any]:
    """Open a file as a reader of record batches, for `in_slices`; `arrow` is `arro3.io`.

    Raises:
        FileEnded: the rest cannot be read.
    """
    with _stream_of(path) as stream:
        try:
            reader = arrow.read_ipc_stream(stream)
        except Exception as error:  # the reader has no errors of its own
            raise FileEnded(f"cannot be read: {error}") from None
        yield reader


def in_slices(reader: Any, most: int) -> Iterator[Any]:
    """Yield record batches of so many rows at most.

    Raises:
        FileEnded: the rest cannot be read.
    """
    batches = iter(reader)
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:
            raise FileEnded(f"cannot be read: {error}") from None
        if batch is None:
            return
        for start in range(0, batch.num_rows, most):
            yield batch.slice(start, min(most, batch.num_rows - start))


@contextmanager
def _stream_of(path: Path) -> Iterator[IO[bytes]]:
    """Open a file as an Arrow stream, which another process writes.

    Raises:
        FileEnded: that process did not come to the end of the file.
    """
    module = "mmesh.cli.files.sources.arrow_process"
    command = [sys.executable, "-P", "-m", module, str(path)]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said) as process,
    ):
        assert process.stdout is not None
        try:
            yield process.stdout
            if not process.stdout.read(1) and (problem := _end_of(process, said)):
                raise problem
        except FileEnded as error:
            if process.stdout.read(1):  # there is more, so it was not for want of it
                raise
            raise _end_of(process, said) or error from None
        finally:
            process.kill()
            process.stdout.close()


def _end_of(process: subprocess.Popen[bytes], said: IO[bytes]) -> FileEnded | None:
    """Return what ended a process early; None when it came to its end."""
    if process.wait() == 0:
        return None
    said.seek(max(0, said.seek(0, os.SEEK_END) - _SAID))
    words = said.read().decode(errors="replace").strip()
    if process.returncode > 0 and words:
        return FileEnded(words.splitlines()[-1])
    return FileEnded(DAMAGED)
