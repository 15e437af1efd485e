"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mmesh.cli.calls.clients import default_address
from mmesh.values.paths import why_not_read


class SourcePath(click.Path):
    """A path that is there and that may be read more than once: a pipe would lose its rows."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(exists=True, file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        path: Any = super().convert(value, param, ctx)  # a Path, as `path_type` says
        if problem := why_not_read(path):
            self.fail(f"{path} {problem}", param, ctx)
        return path


class WrittenPath(click.Path):
    """A file to write; what stands in its way is told before the work, not after."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        path: Any = super().convert(value, param, ctx)
        folder = Path(os.path.realpath(path)).parent  # where a link leads
        if not folder.is_dir():
            self.fail(f"{folder if path.is_symlink() else path.parent} is no folder", param, ctx)
        if not path.exists() and not os.access(folder, os.W_OK):
            self.fail(f"{folder} is not writable", param, ctx)
        return path


class ReplacedPath(WrittenPath):
    """A file that appears when it is whole, in place of what is there; links lead to it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, where a link leads."""
        path: Any = super().convert(value, param, ctx)
        if why_not_read(path):
            self.fail(f"{path} is no file, so that none can take its place", param, ctx)
        return Path(os.path.realpath(path)) if path.is_symlink() else path


def checked_address(_context: click.Context, _option: click.Parameter, value: Any) -> Any:
    """Return the address or addresses of an option; those that are none are wrong usage."""
    from mmesh.errors import InvalidField
    from mmesh.wire.transport import check_target

    try:
        for one in value if isinstance(value, tuple) else (value,):
            check_target(one)
    except InvalidField as error:
        raise click.BadParameter(error.problem) from None
    return value


address_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--target-address",
    "address",
    metavar="HOST:PORT",
    default=default_address,
    show_default="MMESH_TARGET_ADDRESS, else the local mesh",
    callback=checked_address,
    help="Gateway of the mesh.",
)
data_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".mmesh"),
    show_default=True,
    help="Folder of the local mesh.",
)
json_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead of a table."
)
batch_size_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--batch-size",
    type=click.IntRange(1, 256),
    default=64,
    show_default=True,
    help="Candidates in a batch.",
)
restart_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--restart", is_flag=True, help="Begin at the beginning, whatever was done before."
)
journal_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--no-journal",
    is_flag=True,
    help="Neither read nor write the journal of what is stored: send all.",
)
report_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--report",
    type=WrittenPath(),
    metavar="FILE",
    help="JSON Lines of all that was refused, passed over or changed; the screen has some.",
)
