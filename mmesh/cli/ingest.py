"""`mmesh ingest`: folders and files into a collection, with progress."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mmesh.candidates import Candidate, IngestReport
from mmesh.cli.journal import Journal
from mmesh.cli.options import address_option
from mmesh.cli.sources import Unreadable, check_sources, count_sources, read_sources
from mmesh.cli.tables import errors, table
from mmesh.client import Client
from mmesh.ingest import Progress as Settled

SHOWN = 20


@click.command()
@click.argument("collection")
@click.argument(
    "sources", nargs=-1, required=True, metavar="SOURCE...",
    type=click.Path(exists=True, path_type=Path),
)  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1, 256), default=64, show_default=True,
              help="Candidates in a batch.")  # fmt: skip
@click.option("--restart", is_flag=True, help="Begin at the beginning, whatever was done before.")
@address_option
def ingest(
    collection: str, sources: tuple[Path, ...], batch_size: int, restart: bool, address: str
) -> None:
    """Put every SOURCE into COLLECTION, which is created if need be.

    A SOURCE is a folder of pictures (a .txt of the same name makes an illustrated text), or a
    .jsonl, .csv or .parquet file with the columns id, text, image (a path relative to the file)
    and attributes.

    Candidates that are refused are listed and do not stop the rest; the exit code is 1 then. When
    it is interrupted, the same command goes on where it left off.
    """
    check_sources(sources)
    with Client(address) as client:
        journal = Journal(client.create_collection(collection), address, sources)
        done = 0 if restart else journal.read()
        if done:
            errors.print(f"going on after {done} candidates; --restart begins at the beginning")
        unreadable: list[Unreadable] = []
        try:
            report = _ingest(client, collection, sources, batch_size, journal, done, unreadable)
        except KeyboardInterrupt:
            errors.print("interrupted; the same command goes on from here")
            raise
    journal.finish()
    _tell(report, unreadable)


def _ingest(
    client: Client,
    collection: str,
    sources: tuple[Path, ...],
    batch_size: int,
    journal: Journal,
    done: int,
    unreadable: list[Unreadable],
) -> IngestReport:
    with _progress_bar() as bar:
        task = bar.add_task("ingesting", total=count_sources(sources), completed=done)

        def note(progress: Settled) -> None:
            journal.write(done + progress.settled)
            count = done + progress.stored + progress.rejected + len(unreadable)
            bar.update(task, completed=count)

        candidates = _readable(sources, done, unreadable)
        return client.ingest(collection, candidates, batch_size=batch_size, on_progress=note)


def _readable(
    sources: tuple[Path, ...], done: int, unreadable: list[Unreadable]
) -> Iterator[Candidate]:
    for number, one in enumerate(c for c in read_sources(sources) if _keep(c, unreadable)):
        if number >= done and isinstance(one, Candidate):
            yield one


def _keep(one: Candidate | Unreadable, unreadable: list[Unreadable]) -> bool:
    if isinstance(one, Unreadable):
        unreadable.append(one)
    return isinstance(one, Candidate)


class _RateColumn(ProgressColumn):
    """Candidates a second."""

    def render(self, task: Task) -> Text:
        """Return the rate, once it is known."""
        return Text(f"{task.speed:.0f}/s" if task.speed else "")


def _progress_bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               _RateColumn(), TimeRemainingColumn())  # fmt: skip
    return Progress(*columns, console=errors)


def _tell(report: IngestReport, unreadable: list[Unreadable]) -> None:
    rejected = [(r.id, r.error.reason, r.error.message) for r in report.rejected]
    rejected += [(u.id, "UNREADABLE", u.reason) for u in unreadable]
    click.echo(f"stored {report.stored}, rejected {len(rejected)}")
    if not rejected:
        return
    title = f"rejected (first {SHOWN} of {len(rejected)})" if len(rejected) > SHOWN else "rejected"
    errors.print(table(["id", "reason", "message"], rejected[:SHOWN], title))
    sys.exit(1)
