"""Atomic writes: a file appears when it is whole, so that a full disk spoils none before it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def written_whole(path: Path) -> Iterator[TextIO]:
    """Open a text file that takes the place of `path` at the end of the block.

    Lone surrogates, which names of files may hold, are written as Python escapes them.

    Raises:
        OSError: it cannot be written, with its name; what `path` held is kept.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        with naming(path), fresh.open("w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the name without the content
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in errors that do not say which it was, as those of writes."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
