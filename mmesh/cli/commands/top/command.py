"""`mmesh top`: what a mesh does now."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from mmesh.cli.commands.top import targets
from mmesh.cli.commands.top.alerts import firing
from mmesh.cli.commands.top.page import Page, page_of
from mmesh.cli.commands.top.scrape import scrape_all
from mmesh.cli.commands.top.window import Window
from mmesh.cli.options import data_option, json_option

_TROUBLES = 6
"""That are listed on a screen, which holds the tables, too."""
FindTargets = Callable[[], Mapping[str, str]]


@click.command()
@data_option
@click.option(
    "--metrics",
    "addresses",
    multiple=True,
    metavar="HOST:PORT",
    help="Where a process serves its metrics, instead of --data; give the option once "
    "for each process.",
)
@click.option(
    "--prometheus",
    default="",
    metavar="URL",
    help="A Prometheus whose firing alerts are shown; with --data it is that of "
    "`mmesh up --observe`.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Between looks; rates are those of this span.",
)
@click.option("--once", is_flag=True, help="Print one page, after one interval, and end.")
@json_option
def top(
    data: Path,
    addresses: tuple[str, ...],
    prometheus: str,
    interval: float,
    once: bool,
    as_json: bool,
) -> None:
    """Watch rates, latencies, queues, coverage and shards of a mesh, live.

    Reads the metrics of its processes, so it works where searches do not. Ctrl-C ends it. Where
    stdout is no terminal, or with --json, it prints one page and ends.
    """
    if addresses:
        find: FindTargets = partial(targets.of_addresses, addresses)
    else:
        find = partial(targets.of_folder, data)
        prometheus = prometheus or targets.prometheus_of(data)
    pages = _pages(find, prometheus, interval)
    title = "mmesh top" if addresses else f"mmesh top {data}"
    if once or as_json or not sys.stdout.isatty():
        _print(next(pages), title, as_json)
    else:
        _show(pages, title)


def _pages(find: FindTargets, prometheus: str, interval: float) -> Iterator[Page]:
    """Yield a page after every interval; processes may come and go meanwhile."""
    before = scrape_all(find())
    while True:
        time.sleep(interval)
        after = scrape_all(find())
        yield page_of(Window(before, after), firing(prometheus) if prometheus else ())
        before = after


def _print(page: Page, title: str, as_json: bool) -> None:
    from mmesh.cli.commands.top.drawing import drawn
    from mmesh.cli.output.tables import console

    if as_json:
        click.echo(json.dumps(asdict(page)))
    else:
        console().print(drawn(page, title))
    if all(row.problem for row in page.processes):
        raise click.ClickException("no process answers; is the mesh up? `mmesh up` starts one")


def _show(pages: Iterator[Page], title: str) -> None:
    from rich.live import Live

    from mmesh.cli.commands.top.drawing import drawn
    from mmesh.cli.output.tables import console

    with Live(
        console=console(),
        screen=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as live:
        live.update("looking", refresh=True)
        for page in pages:
            live.update(drawn(page, title, _TROUBLES), refresh=True)
