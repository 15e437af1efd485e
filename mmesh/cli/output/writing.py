"""Files that a command writes beside what it prints."""

from __future__ import annotations

from pathlib import Path

import click


def write_file(path: Path, text: str) -> None:
    """Write a text in UTF-8.

    Raises:
        click.ClickException: it cannot be written, as to a full disk.
    """
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from None
