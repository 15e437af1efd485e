"""`mmesh ingest`: folders and files into a collection."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmesh.cli.calls.clients import open_client
from mmesh.cli.options import (
    SourcePath,
    address_option,
    batch_size_option,
    journal_option,
    report_option,
    restart_option,
)

if TYPE_CHECKING:
    from mmesh.cli.files.load import Source
    from mmesh.cli.files.sources.notes import Notes
    from mmesh.cli.files.sources.reading import Reading
    from mmesh.collections import Collection

TYPES = ("string", "integer", "float", "boolean", "date")

_HELP = """\
Put every SOURCE into COLLECTION, which is created if need be.

A SOURCE is a folder of pictures or a file of rows. In a folder cat.txt is the text of cat.jpg;
path, width, height and taken (from EXIF) become attributes. A file is .jsonl, .json, .csv,
.tsv, .parquet, .arrow or .feather, alone or with .gz. All mean the same by it:

\b
  id     text             image      year  price
  a1     a red bicycle               1965  9.99
  a2                      pics/2.jpg 1971

\b
  {"id": "a1", "text": "a red bicycle", "year": 1965, "price": 9.99}
  {"id": "a2", "image": "pics/2.jpg", "year": 1971}

A row has a text, an image, or both; without an id it gets FILE:NUMBER. An image is a path
relative to the file, base64, or the {bytes, path} of Hugging Face. All other columns, and those
in the object `attributes`, become attributes. Null and NaN are absence. What no attribute can
hold is left out and counted.

With --vectors nothing is encoded: the file has one row for each candidate, in their order.

What was stored by an earlier ingest and has not changed is not sent again, so the same command
also goes on after an interruption. Of several rows with one id the last one stays. Rows and
files that are refused are listed and do not stop the rest; the exit code is 1 then.

\b
Examples:
  mmesh ingest photos ~/Pictures --exclude "screenshots" --sync
  mmesh ingest products products.csv --types sku=string,price=float --ignore notes
"""


class Names(click.ParamType):  # type: ignore[type-arg]  # not generic in Click 8.1
    """Names with commas between them."""

    name = "NAME,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return the names."""
        del param, ctx
        names = value.split(",") if isinstance(value, str) else value
        return tuple(name.strip() for name in names if name.strip())


class Typed(Names):
    """Columns with types, and commas between them."""

    name = "COLUMN=TYPE,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Check and return them."""
        pairs = super().convert(value, param, ctx)
        for pair in pairs:
            column, _, kind = pair.rpartition("=")
            if not column or kind not in TYPES:
                known = ", ".join(TYPES)
                self.fail(f"{pair!r} is not COLUMN=TYPE with a type of {known}", param, ctx)
        return pairs


@click.command(help=_HELP)
@click.argument("collection")
@click.argument(
    "sources",
    nargs=-1,
    required=True,
    metavar="SOURCE...",
    type=SourcePath(),
)
@click.option(
    "--types",
    type=Typed(),
    multiple=True,
    help="Type of columns: string, integer, "
    "float, boolean or date. Others keep the type that they have; cells of CSV have the "
    "type that fits all of their column.",
)
@click.option(
    "--columns",
    type=Names(),
    multiple=True,
    help="Columns that become attributes; by default all but id, text, image and attributes.",
)
@click.option(
    "--ignore", type=Names(), multiple=True, help="Columns that are as if they were not there."
)
@click.option(
    "--delimiter", metavar="CHARACTER", help="Between the cells of CSV; by default it is found out."
)
@click.option(
    "--encoding",
    metavar="NAME",
    help="Of JSON and CSV; by default UTF-8, UTF-16 and "
    "UTF-32 are told apart; lines that are none are read as Windows-1252.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Paths in a folder, or names of files and folders, to leave out.",
)
@click.option("--follow-links", is_flag=True, help="Go into folders that are links.")
@click.option(
    "--allow-outside",
    is_flag=True,
    help="Read pictures that rows name outside of the folder of their file.",
)
@click.option(
    "--vectors",
    type=SourcePath(dir_okay=False),
    metavar="FILE",
    help="Vectors made elsewhere: a .npy of float32, float16 or int8, or "
    "a .parquet with the column `vector`.",
)
@click.option(
    "--model-fingerprint",
    metavar="FINGERPRINT",
    help="Model of the vectors, which must be the collection's; by default it is taken to be that.",
)
@click.option(
    "--sync",
    is_flag=True,
    help="Remove what earlier ingests of the same SOURCE stored and what is gone from it.",
)
@click.option(
    "--dry-run", is_flag=True, help="Read everything, change nothing, and say what would be done."
)
@batch_size_option
@restart_option
@journal_option
@report_option
@address_option
def ingest(
    collection: str,
    sources: tuple[Path, ...],
    vectors: Path | None,
    model_fingerprint: str | None,
    batch_size: int,
    restart: bool,
    no_journal: bool,
    sync: bool,
    dry_run: bool,
    report: Path | None,
    address: str,
    **reading: Any,
) -> None:
    """Run the command."""
    from mmesh.cli.files.load import Manner, find_collection, load, open_collection
    from mmesh.cli.files.sources.notes import Notes
    from mmesh.cli.files.sources.reading import check_sources

    check_sources(sources)
    if model_fingerprint and vectors is None:
        raise click.UsageError("--model-fingerprint says whose --vectors they are; give both")
    if sync and no_journal:
        raise click.UsageError("--sync removes what the journal says; give it without --no-journal")
    manner = Manner(batch_size, restart, sync, dry_run, report, has_journal=not no_journal)
    rules = _reading(**reading)
    with open_client(address) as client:
        opening = find_collection if dry_run else open_collection
        found = opening(client, collection)
        notes = Notes(sys.maxsize) if report else Notes()
        source = _source_of(sources, rules, vectors, model_fingerprint, found, notes)
        load(client, found, address, source, manner)


def _reading(
    types: tuple[tuple[str, ...], ...],
    columns: tuple[tuple[str, ...], ...],
    ignore: tuple[tuple[str, ...], ...],
    delimiter: str | None,
    encoding: str | None,
    exclude: tuple[str, ...],
    follow_links: bool,
    allow_outside: bool,
) -> Reading:
    from mmesh.cli.files.sources.attribute_values import ColumnRules
    from mmesh.cli.files.sources.csv_rows import Dialect
    from mmesh.cli.files.sources.folders import FolderRules
    from mmesh.cli.files.sources.reading import Reading
    from mmesh.cli.files.sources.text_lines import check_encoding

    if encoding:
        check_encoding(encoding)
    mark = (delimiter or "").replace("\\t", "\t")
    if len(mark) > 1:
        raise click.BadParameter(
            f"{delimiter!r} is more than one character", param_hint="--delimiter"
        )
    by_column = dict(pair.rpartition("=")[::2] for pairs in types for pair in pairs)
    chosen = frozenset(name for names in columns for name in names)
    ignored = frozenset(name for names in ignore for name in names)
    return Reading(
        ColumnRules(by_column, chosen if columns else None, ignored),
        FolderRules(exclude, follow_links),
        Dialect(mark, encoding or ""),
        allow_outside,
    )


def _source_of(
    sources: tuple[Path, ...],
    reading: Reading,
    vectors: Path | None,
    model_fingerprint: str | None,
    collection: Collection | None,
    notes: Notes,
) -> Source:
    from mmesh.cli.files.load import Source
    from mmesh.cli.files.sources.items import source_name
    from mmesh.cli.files.sources.reading import count_sources, read_sources

    total = count_sources(sources, reading)
    items = read_sources(sources, reading, notes)
    names = tuple(source_name(source) for source in sources)
    if vectors is None:
        return Source(items, total, names, notes)
    from mmesh.cli.files.embeddings import VectorFile, with_vectors

    file = VectorFile(vectors)
    _check_count(vectors, file.count, total, sources, reading)
    fingerprint = model_fingerprint or (collection.model_fingerprint if collection else "")
    return Source(
        with_vectors(items, file, vectors),
        file.count or total,
        names,
        notes,
        fingerprint,
        file.data_type,
    )


def _check_count(
    vectors: Path, rows: int | None, estimate: int | None, sources: tuple[Path, ...], rules: Reading
) -> None:
    """Raise an error when the sources need another number of vectors; an estimate proves none."""
    from mmesh.cli.files.sources.reading import count_exactly

    if rows is None or estimate in (None, rows):
        return
    if (needed := count_exactly(sources, rules)) != rows:
        raise click.ClickException(f"{vectors} has {rows} rows for {needed} candidates")
