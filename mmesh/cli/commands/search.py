"""`mmesh search`: one search as a table, JSON or HTML; `query_file` has many from a file."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmesh.cli.calls.clients import open_client
from mmesh.cli.options import SourcePath, WrittenPath, address_option, json_option
from mmesh.cli.output.tables import (
    console,
    explanation_notes,
    explanation_table,
    footnotes,
    hits_table,
)
from mmesh.cli.output.writing import write_file
from mmesh.content import Content, Image, Part
from mmesh.errors import MmeshError
from mmesh.search import TARGETS, MergePolicy, Rerank, Search, SearchResult

if TYPE_CHECKING:
    from mmesh.filters import Filter


@click.command()
@click.argument("collection")
@click.argument("text", required=False)
@click.option(
    "--image",
    type=SourcePath(dir_okay=False),
    help="Picture to search with, alone or beside TEXT; of any format that `mmesh ingest` takes.",
)
@click.option(
    "--instruction", default="", help="What is sought, such as 'Find a photo of the dish.'"
)
@click.option(
    "--target",
    type=click.Choice(list(TARGETS)),
    default="any",
    show_default=True,
    help="Modality of the hits; with_image: with or without a text.",
)
@click.option(
    "--limit", type=int, help="Hits; 1 to 1000.  [default: 10, or what the collection allows]"
)
@click.option("--rerank", type=int, help="Hits to judge; 0: none.  [default: 20]")
@click.option(
    "--rerank-seconds",
    type=float,
    default=0.0,
    metavar="SECONDS",
    help="With --rerank: longest time.  [default: half of what is left]",
)
@click.option(
    "--rerank-image-tokens",
    type=int,
    default=0,
    metavar="TOKENS",
    help="With --rerank: tokens of pictures to read.  [default: any]",
)
@click.option(
    "--merge",
    type=click.Choice([policy.value for policy in MergePolicy]),
    help="How the modalities' lists become one.  [default: the mesh's]",
)
@click.option(
    "--filter",
    "expression",
    metavar="EXPR",
    help="Which candidates count: 'topic = \"cats\" and year >= 1969'.",
)
@click.option("--token", default="", help="Token of a write that must be visible.")
@click.option("--explain", is_flag=True, help="Show the numbers that the order comes from.")
@click.option("--require-all-shards", is_flag=True, help="Fail unless every shard answers.")
@click.option(
    "--queries",
    type=SourcePath(dir_okay=False),
    help="JSONL file of queries; prints a line of JSON for each, in order.",
)
@json_option
@click.option(
    "--html",
    type=WrittenPath(),
    metavar="FILE",
    help="Write a page with the pictures.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds to wait.",
)
@address_option
def search(
    collection: str, text: str | None, image: Path | None, queries: Path | None,
    as_json: bool, html: Path | None, timeout: float, address: str, **options: Any,
) -> None:  # fmt: skip
    """Search COLLECTION with TEXT, a picture, or both."""
    template = _template(collection, **options)
    if queries is not None:
        if text or image or html:
            raise click.UsageError("--queries goes without TEXT, --image and --html")
        from mmesh.cli.calls.query_file import run_file

        sys.exit(run_file(queries, template, timeout, address))
    query = _query(text, image)
    wants_content = bool(html) or not as_json
    asked = replace(template, query=query, include_content=wants_content)
    with open_client(address) as client:
        (result,) = client.search_batch([asked], timeout=timeout)
    if isinstance(result, MmeshError):
        raise result
    try:
        if html:
            from mmesh.cli.output.html import search_page

            write_file(html, search_page([(asked, result)], title=f"mmesh: {collection}"))
    finally:
        _print(result, as_json)


def _template(
    collection: str, *, instruction: str, target: str, limit: int | None, rerank: int | None,
    rerank_seconds: float, rerank_image_tokens: int,
    merge: str | None, expression: str | None, token: str, require_all_shards: bool,
    explain: bool,
) -> Search:  # fmt: skip
    return Search(
        collection,
        Content(()),
        instruction=instruction,
        target=TARGETS[target],
        limit=limit,
        rerank=_rerank(rerank, rerank_seconds, rerank_image_tokens),
        merge=MergePolicy(merge) if merge else None,
        filter=_filter(expression) if expression else None,
        token=token,
        require_all_shards=require_all_shards,
        explain=explain,
    )


def _filter(expression: str) -> Filter:
    from mmesh.filter_language import parse_filter

    return parse_filter(expression)


def _rerank(candidates: int | None, seconds: float, image_tokens: int) -> Rerank | None:
    if candidates is not None:
        return Rerank(candidates, seconds, image_tokens)
    if seconds or image_tokens:
        raise click.UsageError("--rerank-seconds and --rerank-image-tokens go with --rerank")
    return None


def _query(text: str | None, image: Path | None) -> Content:
    parts: list[Part] = [_image_of(image)] if image else []
    parts += [text] if text else []
    if not parts:
        raise click.UsageError("give TEXT, --image or both, or --queries FILE")
    return Content(tuple(parts))


def _image_of(path: Path) -> Image:
    from mmesh.cli.files.sources.items import bytes_of
    from mmesh.cli.files.sources.notes import Notes
    from mmesh.cli.files.sources.pictures import MAX_FILE_BYTES, image_of

    try:
        return image_of(bytes_of(path, MAX_FILE_BYTES), path.name, Notes())
    except ValueError as error:
        raise click.BadParameter(f"{path} {error}", param_hint="--image") from None


def _print(result: SearchResult, as_json: bool) -> None:
    if as_json:
        from mmesh.cli.output.rows import result_row

        click.echo(json.dumps(result_row(result), ensure_ascii=False))
        return
    is_explained = any(hit.explanation for hit in result.hits)
    console().print(explanation_table(result) if is_explained else hits_table(result))
    for line in [*(explanation_notes(result) if is_explained else []), *footnotes(result)]:
        console().print(line, style="dim", markup=False)
