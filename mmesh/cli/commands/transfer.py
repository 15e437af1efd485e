"""`mmesh export` and `mmesh import`: a collection into a Parquet file, and back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmesh.cli.calls.clients import open_client
from mmesh.cli.files.journal import Journal
from mmesh.cli.files.load import Source, load, open_collection
from mmesh.cli.options import address_option, batch_size_option, restart_option
from mmesh.cli.output.tables import errors
from mmesh.errors import Unavailable

if TYPE_CHECKING:
    from mmesh.candidates import Page
    from mmesh.cli.files.archive import Header
    from mmesh.client import Client
    from mmesh.collections import Collection

PAGE = 256
PATIENCE_S, PAUSE_S = 60.0, 0.5


@click.command()
@click.argument("collection")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.parquet")
@click.option("--no-images", is_flag=True, help="Leave the bytes of pictures out.")
@click.option("--no-vectors", is_flag=True, help="Leave the vectors out.")
@address_option
def export(collection: str, file: Path, no_images: bool, no_vectors: bool, address: str) -> None:
    """Write COLLECTION to a Parquet FILE, which appears when it is complete.

    It has a row for each candidate, by id. Writes during the export may be in it or not. `mmesh
    import` makes the same collection of it again.
    """
    part = file.with_name(file.name + ".part")
    try:
        with open_client(address) as client:
            found = client.get_collection(collection)
            count = _write(client, found, part, images=not no_images, vectors=not no_vectors)
        os.replace(part, file)
    except OSError as error:
        raise click.ClickException(str(error)) from None
    finally:
        part.unlink(missing_ok=True)
    click.echo(f"exported {count} candidates to {file} ({file.stat().st_size / 1e6:.1f} MB)")


def _write(
    client: Client, collection: Collection, path: Path, *, images: bool, vectors: bool
) -> int:
    from mmesh.cli.files.archive import Header, write_archive
    from mmesh.cli.output.progress import progress_bar

    total = sum(collection.candidates.values())
    header = Header(
        collection.name, collection.model_fingerprint, collection.dim, collection.token, total
    )
    with progress_bar() as bar:
        task = bar.add_task("exporting", total=total)
        return write_archive(
            path,
            header,
            _pages(client, collection.name, images, vectors),
            images=images,
            on_rows=lambda count: bar.update(task, completed=count),
        )


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
        except Unavailable:
            if time.monotonic() > until:
                raise
            time.sleep(PAUSE_S)


@click.command("import")
@click.argument("collection")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                metavar="FILE.parquet")  # fmt: skip
@batch_size_option
@restart_option
@address_option
def import_(collection: str, file: Path, batch_size: int, restart: bool, address: str) -> None:
    """Put what `mmesh export` wrote into COLLECTION, which is created if need be.

    Its vectors are used when they are of the collection's model; otherwise everything is encoded
    anew. When it is interrupted, the same command goes on where it left off.
    """
    from mmesh.cli.files.archive import read_header

    header = read_header(file)
    with open_client(address) as client:
        found = open_collection(client, collection)
        journal = Journal(found, address, (file,), "import")
        source = _source_of(file, header, found)
        load(client, collection, source, journal, batch_size=batch_size, restart=restart)


def _source_of(file: Path, header: Header, collection: Collection) -> Source:
    from mmesh.cli.files.archive import has_vectors, read_archive

    same_model = header.model_fingerprint == collection.model_fingerprint
    usable = same_model and has_vectors(file)
    if not usable:
        problem = f"the file's model is {header.model_fingerprint!r}, the collection's " \
                  f"{collection.model_fingerprint!r}"  # fmt: skip
        errors().print(f"encoding anew: {'the file has no vectors' if same_model else problem}")
    rows = read_archive(file, vectors=usable)
    return Source(rows, header.count, header.model_fingerprint if usable else "")
