"""`mmesh ingest`: folders and files into a collection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmesh.cli.calls.clients import open_client
from mmesh.cli.files.journal import Journal
from mmesh.cli.files.load import Source, load, open_collection
from mmesh.cli.files.sources import check_sources, count_sources, read_sources
from mmesh.cli.options import address_option, batch_size_option, restart_option

if TYPE_CHECKING:
    from mmesh.collections import Collection


@click.command()
@click.argument("collection")
@click.argument(
    "sources", nargs=-1, required=True, metavar="SOURCE...",
    type=click.Path(exists=True, path_type=Path),
)  # fmt: skip
@click.option("--vectors", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              metavar="FILE", help="Vectors made elsewhere: a .npy of float32, float16 or int8, or "
              "a .parquet with the column `vector`.")  # fmt: skip
@click.option("--model-fingerprint", metavar="FINGERPRINT",
              help="Model of the vectors, which must be the collection's; by default it is taken "
              "to be that.")  # fmt: skip
@batch_size_option
@restart_option
@address_option
def ingest(
    collection: str,
    sources: tuple[Path, ...],
    vectors: Path | None,
    model_fingerprint: str | None,
    batch_size: int,
    restart: bool,
    address: str,
) -> None:
    """Put every SOURCE into COLLECTION, which is created if need be.

    A SOURCE is a folder of pictures (a .txt of the same name makes an illustrated text), or a
    .jsonl, .csv or .parquet file with the columns id, text, image (a path relative to the file)
    and attributes.

    With --vectors nothing is encoded: the file has one row for each candidate, in their order.

    Candidates that are refused are listed and do not stop the rest; the exit code is 1 then. When
    it is interrupted, the same command goes on where it left off.
    """
    check_sources(sources)
    if model_fingerprint and vectors is None:
        raise click.UsageError("--model-fingerprint says whose --vectors they are; give both")
    with open_client(address) as client:
        found = open_collection(client, collection)
        journal = Journal(found, address, (*sources, vectors) if vectors else sources)
        source = _source_of(sources, vectors, model_fingerprint, found)
        load(client, collection, source, journal, batch_size=batch_size, restart=restart)


def _source_of(
    sources: tuple[Path, ...],
    vectors: Path | None,
    model_fingerprint: str | None,
    collection: Collection,
) -> Source:
    total, rows = count_sources(sources), read_sources(sources)
    if vectors is None:
        return Source(rows, total)
    from mmesh.cli.files.embeddings import VectorFile, with_vectors

    file = VectorFile(vectors)
    if None not in (total, file.count) and total != file.count:
        raise click.ClickException(f"{vectors} has {file.count} rows for {total} candidates")
    return Source(
        with_vectors(rows, file, vectors),
        total or file.count,
        model_fingerprint or collection.model_fingerprint,
        file.data_type,
    )
