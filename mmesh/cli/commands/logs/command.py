"""`mmesh logs`: what happened, over all processes of a local mesh."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mmesh.cli.commands.logs.lines import LEVELS, Choice, Line, chosen_lines
from mmesh.cli.options import data_option
from mmesh.cli.output.terminal import shown_in_line

_FIRST = ("time", "level", "service", "message")
_LEAST_SAID = ("logger",)
"""Shown as JSON alone."""


@click.command()
@data_option
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="NAME",
    help="Only processes whose name begins so, such as gateway or index-0.",
)
@click.option(
    "--id",
    "ids",
    multiple=True,
    metavar="ID",
    help="Only lines of this request id or trace id, in all processes.",
)
@click.option(
    "--level",
    type=click.Choice(LEVELS, case_sensitive=False),
    default=LEVELS[0],
    help="Only this level and what is worse.",
)
@click.option(
    "--message",
    default="",
    metavar="TEXT",
    help='Only lines that are this, such as "slow search", call, or failed.',
)
@click.option(
    "--slower-than",
    type=click.FloatRange(0),
    default=0.0,
    metavar="MS",
    help="Only calls and searches that took as many milliseconds.",
)
@click.option(
    "--last",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Lines at most: the newest.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the lines as they were written.")
def logs(
    data: Path,
    services: tuple[str, ...],
    ids: tuple[str, ...],
    level: str,
    message: str,
    slower_than: float,
    last: int,
    as_json: bool,
) -> None:
    """Show what the processes of a mesh on this machine logged, put together by time."""
    folder = data / "logs"
    if not folder.is_dir():
        raise click.ClickException(f"no mesh has run on {data}: give --data of one")
    choice = Choice(services, level.upper(), message, frozenset(ids), slower_than)
    for line in chosen_lines(folder, choice, last):
        click.echo(json.dumps(line) if as_json else _written(line))


def _written(line: Line) -> str:
    """Return a line for people: time, level, process, message, then what else it says."""
    given = {name: value for name, value in line.items() if name not in (*_FIRST, *_LEAST_SAID)}
    more = " ".join(f"{name}={_value(value)}" for name, value in sorted(given.items()))
    first = " ".join(str(line.get(name, "")) for name in _FIRST)
    return shown_in_line(f"{first} {more}".rstrip())


def _value(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)
