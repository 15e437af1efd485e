"""`mmesh export` and `mmesh import`: a collection into a Parquet file, and back."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmesh.cli.calls.clients import open_client
from mmesh.cli.files.load import Manner, Source, load, open_collection
from mmesh.cli.options import (
    ReplacedPath,
    SourcePath,
    address_option,
    batch_size_option,
    journal_option,
    report_option,
    restart_option,
)
from mmesh.cli.output.tables import errors, table
from mmesh.errors import DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    from mmesh.candidates import Page
    from mmesh.cli.files.archive import Header
    from mmesh.client import Client
    from mmesh.collections import Collection

PAGE = 256
SHOWN = 20
PATIENCE_S, PAUSE_S = 60.0, 0.5
_Lost = tuple[str, str]
"""Id of a candidate that is not whole, and what is wrong with it."""


@click.command()
@click.argument("collection")
@click.argument("file", type=ReplacedPath(), metavar="FILE.parquet")
@click.option("--no-images", is_flag=True, help="Leave the bytes of pictures out.")
@click.option("--no-vectors", is_flag=True, help="Leave the vectors out.")
@address_option
def export(collection: str, file: Path, no_images: bool, no_vectors: bool, address: str) -> None:
    """Write COLLECTION to a Parquet FILE, which appears when it is complete.

    It has a row for each candidate, by id. Writes during the export may be in it or not. `mmesh
    import` makes the same collection of it again. Candidates with a picture that is lost are in it
    without that picture, and listed; the exit code is 1 then.
    """
    lost: list[_Lost] = []
    part = file.with_name(file.name + ".part")
    try:
        with open_client(address) as client:
            found = client.get_collection(collection)
            count = _write(client, found, part, lost, images=not no_images, vectors=not no_vectors)
        os.replace(part, file)
    except OSError as error:
        raise click.ClickException(str(error)) from None
    finally:
        part.unlink(missing_ok=True)
    click.echo(f"exported {count} candidates to {file} ({file.stat().st_size / 1e6:.1f} MB)")
    if lost:
        _tell_lost(lost)
        sys.exit(1)


def _tell_lost(lost: Sequence[_Lost]) -> None:
    title = f"{len(lost)} candidates are not whole"
    errors().print(table(["id", "problem"], lost[:SHOWN], title))


def _write(
    client: Client,
    collection: Collection,
    path: Path,
    lost: list[_Lost],
    *,
    images: bool,
    vectors: bool,
) -> int:
    """Write the file, note what is lost, and return how many candidates are in it."""
    from mmesh.cli.files.archive import Header, write_archive
    from mmesh.cli.output.progress import progress_bar
    from mmesh.content import WITH_IMAGE

    total = sum(collection.candidates.values())
    header = Header(
        collection.name, collection.model_fingerprint, collection.dim, collection.token, total
    )
    with progress_bar() as bar:
        task = bar.add_task("exporting", total=total)
        return write_archive(
            path,
            header,
            _noting_lost(_pages(client, collection.name, images, vectors), lost),
            images=images,
            on_rows=lambda count: bar.update(task, completed=count),
            pictures=sum(collection.candidates.get(one, 0) for one in WITH_IMAGE),
        )


def _noting_lost(pages: Iterator[Page], lost: list[_Lost]) -> Iterator[Page]:
    for page in pages:
        lost += [(one.id, one.problem.message) for one in page.candidates if one.problem]
        yield page


def _pages(client: Client, collection: str, images: bool, vectors: bool) -> Iterator[Page]:
    token = ""
    while True:
        page = _page(client, collection, token, images, vectors)
        yield page
        if not (token := page.next_token):
            return


def _page(client: Client, collection: str, token: str, images: bool, vectors: bool) -> Page:
    """Return a page; a mesh that is away for a moment does not end the export."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return client.list_candidates(
                collection,
                page_size=PAGE,
                page_token=token,
                include_images=images,
                include_vectors=vectors,
            )
        except (Unavailable, DeadlineExceeded):
            if time.monotonic() > until:
                raise
            time.sleep(PAUSE_S)


@click.command("import")
@click.argument("collection")
@click.argument("file", type=SourcePath(dir_okay=False), metavar="FILE.parquet")
@batch_size_option
@restart_option
@journal_option
@report_option
@address_option
def import_(
    collection: str,
    file: Path,
    batch_size: int,
    restart: bool,
    no_journal: bool,
    report: Path | None,
    address: str,
) -> None:
    """Put what `mmesh export` wrote into COLLECTION, which is created if need be.

    Its vectors are used when they are of the collection's model; otherwise everything is encoded
    anew. When it is interrupted, the same command goes on where it left off.
    """
    from mmesh.cli.files.archive import read_header

    header = read_header(file)
    with open_client(address) as client:
        found = open_collection(client, collection)
        source = _source_of(file, header, found)
        manner = Manner(batch_size, restart, report=report, has_journal=not no_journal)
        load(client, found, address, source, manner)


def _source_of(file: Path, header: Header, collection: Collection) -> Source:
    from mmesh.cli.files.archive import archive_items, has_vectors

    same_model = header.model_fingerprint == collection.model_fingerprint
    usable = same_model and has_vectors(file)
    if not usable:
        problem = (
            f"the file's model is {header.model_fingerprint!r}, the collection's "
            f"{collection.model_fingerprint!r}"
        )
        errors().print(f"encoding anew: {'the file has no vectors' if same_model else problem}")
    return Source(
        archive_items(file, vectors=usable),
        header.count,
        (),
        model_fingerprint=header.model_fingerprint if usable else "",
    )
