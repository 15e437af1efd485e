"""Candidates from files into a collection: with progress, a report, and going on after a break."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmesh.cli.files.sources import Unreadable
from mmesh.cli.output.tables import errors, table
from mmesh.errors import CollectionNotFound
from mmesh.vectors import DataType

if TYPE_CHECKING:
    from mmesh.candidates import Candidate, Embedded, IngestReport
    from mmesh.cli.files.journal import Journal
    from mmesh.client import Client
    from mmesh.collections import Collection
    from mmesh.ingest import Progress

SHOWN = 20


@dataclass(frozen=True, slots=True)
class Source:
    """What there is to put in."""

    rows: Iterator[Candidate | Embedded | Unreadable]
    """The same every time."""
    total: int | None
    model_fingerprint: str = ""
    """Model of the vectors of `Embedded` rows."""
    data_type: DataType = DataType.FLOAT32


def open_collection(client: Client, name: str) -> Collection:
    """Return the collection of this name or alias, made if there is none."""
    try:
        return client.get_collection(name)
    except CollectionNotFound:
        return client.create_collection(name)


def load(
    client: Client,
    collection: str,
    source: Source,
    journal: Journal,
    *,
    batch_size: int,
    restart: bool,
) -> None:
    """Put in what is not in yet, tell what became of it, and exit with 1 if any was refused."""
    done = 0 if restart else journal.read()
    if done:
        errors().print(f"going on after {done} candidates; --restart begins at the beginning")
    unreadable: list[Unreadable] = []
    try:
        report = _load(client, collection, source, batch_size, journal, done, unreadable)
    except KeyboardInterrupt:
        errors().print("interrupted; the same command goes on from here")
        raise
    journal.finish()
    _tell(report, unreadable)


def _load(
    client: Client,
    collection: str,
    source: Source,
    batch_size: int,
    journal: Journal,
    done: int,
    unreadable: list[Unreadable],
) -> IngestReport:
    from mmesh.cli.output.progress import progress_bar

    with progress_bar() as bar:
        task = bar.add_task("ingesting", total=source.total, completed=done)

        def note(progress: Progress) -> None:
            journal.write(done + progress.settled)
            count = done + progress.stored + progress.rejected + len(unreadable)
            bar.update(task, completed=count)

        return client.ingest(
            collection,
            _readable(source.rows, done, unreadable),
            model_fingerprint=source.model_fingerprint,
            data_type=source.data_type,
            batch_size=batch_size,
            on_progress=note,
        )


def _readable(
    rows: Iterator[Candidate | Embedded | Unreadable], done: int, unreadable: list[Unreadable]
) -> Iterator[Candidate | Embedded]:
    number = 0
    for one in rows:
        if isinstance(one, Unreadable):
            unreadable.append(one)
            continue
        number += 1
        if number > done:
            yield one


def _tell(report: IngestReport, unreadable: list[Unreadable]) -> None:
    rejected = [(r.id, r.error.reason, r.error.message) for r in report.rejected]
    rejected += [(u.id, "UNREADABLE", u.reason) for u in unreadable]
    print(f"stored {report.stored}, rejected {len(rejected)}")
    if not rejected:
        return
    title = f"rejected (first {SHOWN} of {len(rejected)})" if len(rejected) > SHOWN else "rejected"
    errors().print(table(["id", "reason", "message"], rejected[:SHOWN], title))
    sys.exit(1)
