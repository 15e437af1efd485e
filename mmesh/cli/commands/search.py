"""`mmesh search`: one search as a table, JSON or HTML; `query_file` has many from a file."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmesh.cli.calls.clients import open_client
from mmesh.cli.options import address_option, json_option
from mmesh.cli.output.tables import console, footnotes, hits_table
from mmesh.content import Content, Image, Modality, Part
from mmesh.errors import MmeshError
from mmesh.search import MergePolicy, Rerank, Search, SearchResult

if TYPE_CHECKING:
    from mmesh.filters import Filter

_ANY = "any"


@click.command()
@click.argument("collection")
@click.argument("text", required=False)
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Picture to search with, alone or beside TEXT.")  # fmt: skip
@click.option(
    "--instruction", default="", help="What is sought, such as 'Find a photo of the dish.'"
)
@click.option("--target", type=click.Choice([_ANY, *(m.value for m in Modality)]), default=_ANY,
              show_default=True, help="Modality of the hits.")  # fmt: skip
@click.option("--limit", type=int, default=10, show_default=True, help="Hits; 1 to 1000.")
@click.option("--rerank", type=int, help="Hits to judge; 0: none.  [default: 20]")
@click.option("--rerank-seconds", type=float, default=0.0, metavar="SECONDS",
              help="With --rerank: longest time.  [default: half of what is left]")  # fmt: skip
@click.option("--rerank-image-tokens", type=int, default=0, metavar="TOKENS",
              help="With --rerank: tokens of pictures to read.  [default: any]")  # fmt: skip
@click.option("--merge", type=click.Choice([policy.value for policy in MergePolicy]),
              help="How the modalities' lists become one.  [default: the mesh's]")  # fmt: skip
@click.option("--filter", "expression", metavar="EXPR",
              help="Which candidates count: 'topic = \"cats\" and year >= 1969'.")  # fmt: skip
@click.option("--token", default="", help="Token of a write that must be visible.")
@click.option("--require-all-shards", is_flag=True, help="Fail unless every shard answers.")
@click.option("--queries", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="JSONL file of queries; prints a line of JSON for each, in order.")  # fmt: skip
@json_option
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write a page with the pictures.")  # fmt: skip
@click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds to wait.")
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
    if html:
        from mmesh.cli.output.html import search_page

        html.write_text(search_page([(asked, result)], title=f"mmesh: {collection}"), "utf-8")
    _print(result, as_json)


def _template(
    collection: str, *, instruction: str, target: str, limit: int, rerank: int | None,
    rerank_seconds: float, rerank_image_tokens: int,
    merge: str | None, expression: str | None, token: str, require_all_shards: bool,
) -> Search:  # fmt: skip
    return Search(
        collection,
        Content(()),
        instruction=instruction,
        target=None if target == _ANY else Modality(target),
        limit=limit,
        rerank=_rerank(rerank, rerank_seconds, rerank_image_tokens),
        merge=MergePolicy(merge) if merge else None,
        filter=_filter(expression) if expression else None,
        token=token,
        require_all_shards=require_all_shards,
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
    parts: list[Part] = [Image(image.read_bytes())] if image else []
    parts += [text] if text else []
    if not parts:
        raise click.UsageError("give TEXT, --image or both, or --queries FILE")
    return Content(tuple(parts))


def _print(result: SearchResult, as_json: bool) -> None:
    if as_json:
        from mmesh.cli.output.rows import result_row

        click.echo(json.dumps(result_row(result), ensure_ascii=False))
        return
    console().print(hits_table(result))
    for line in footnotes(result):
        console().print(line, style="dim", markup=False)
