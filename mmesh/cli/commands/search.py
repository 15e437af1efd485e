"""`mmesh search`: one search as a table, JSON or HTML, or many from a file."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmesh.cli.clients import open_async_client, open_client
from mmesh.cli.files.sources import Unreadable, content_of, json_rows
from mmesh.cli.options import address_option, json_option
from mmesh.cli.output.html import search_page
from mmesh.cli.output.rows import error_row, result_row
from mmesh.cli.output.tables import console, footnotes, hits_table
from mmesh.content import Content, Image, Modality, Part
from mmesh.errors import MmeshError
from mmesh.filters import parse_filter
from mmesh.search import MergePolicy, Rerank, Search, SearchResult

if TYPE_CHECKING:
    from mmesh.aio import AsyncClient

BATCH, IN_FLIGHT = 32, 4
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
        sys.exit(asyncio.run(_run_file(queries, template, timeout, address)))
    query = _query(text, image)
    wants_content = bool(html) or not as_json
    asked = replace(template, query=query, include_content=wants_content)
    with open_client(address) as client:
        (result,) = client.search_batch([asked], timeout=timeout)
    if isinstance(result, MmeshError):
        raise result
    if html:
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
        filter=parse_filter(expression) if expression else None,
        token=token,
        require_all_shards=require_all_shards,
    )


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
        click.echo(json.dumps(result_row(result), ensure_ascii=False))
        return
    console().print(hits_table(result))
    for line in footnotes(result):
        console().print(line, style="dim", markup=False)


async def _run_file(path: Path, template: Search, timeout: float, address: str) -> int:
    """Run the queries of a file; return the exit code, 1 when any of them failed."""
    failed = 0
    async with open_async_client(address) as client:
        async for row in _answers(client, path, template, timeout):
            failed += "error" in row
            click.echo(json.dumps(row, ensure_ascii=False))
    return 1 if failed else 0


async def _answers(
    client: AsyncClient, path: Path, template: Search, timeout: float
) -> AsyncIterator[dict[str, Any]]:
    """Yield an answer for each line, in order, with several batches in flight."""
    lines = _lines(path, template)
    flying: list[asyncio.Task[list[dict[str, Any]]]] = []
    while True:
        while len(flying) < IN_FLIGHT and (batch := list(islice(lines, BATCH))):
            flying.append(asyncio.create_task(_answer_batch(client, batch, timeout)))
        if not flying:
            return
        for row in await flying.pop(0):
            yield row


Line = tuple[str, Search | Unreadable]


def _lines(path: Path, template: Search) -> Iterator[Line]:
    for number, row in enumerate(json_rows(path), start=1):
        name = f"{path.name}:{number}"
        if isinstance(row, Unreadable):
            yield name, row
            continue
        name = str(row.get("id") or name)
        try:
            yield name, _search_of(row, template, path.parent)
        except (OSError, ValueError) as error:
            yield name, Unreadable(name, str(error))


def _search_of(row: dict[str, Any], template: Search, folder: Path) -> Search:
    target = row.get("target") or (template.target.value if template.target else _ANY)
    return replace(
        template,
        query=content_of(row, folder),
        instruction=row.get("instruction") or template.instruction,
        target=None if target == _ANY else Modality(target),
    )


async def _answer_batch(
    client: AsyncClient, batch: list[Line], timeout: float
) -> list[dict[str, Any]]:
    searches = [one for _, one in batch if isinstance(one, Search)]
    outcomes: list[SearchResult | MmeshError] = []
    if searches:
        try:
            outcomes = await client.search_batch(searches, timeout=timeout)
        except MmeshError as error:
            outcomes = [error] * len(searches)
    answers = iter(outcomes)
    return [{"id": name} | _row(one, answers) for name, one in batch]


def _row(one: Search | Unreadable, answers: Iterator[SearchResult | MmeshError]) -> dict[str, Any]:
    if isinstance(one, Unreadable):
        return {"error": {"reason": "UNREADABLE", "message": one.reason, "metadata": {}}}
    outcome = next(answers)
    return error_row(outcome) if isinstance(outcome, MmeshError) else result_row(outcome)
