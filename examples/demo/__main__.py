"""Run the demo: `make demo`, or `python -m examples.demo --help`."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import click

from examples.demo.contents import COLLECTION, LIMIT, demo_candidates, searches
from examples.demo.pictures import fetch_pictures
from mmesh import AsyncClient, Progress, Search, SearchResult
from mmesh.cli.output.html import search_page
from mmesh.cli.output.tables import console, footnotes, hits_table, table
from mmesh.content import Modality
from mmesh.local import LocalMesh, LocalSettings

Searched = tuple[dict[str, Any], Search, SearchResult]


@click.command()
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    default=Path("demo.html"),
    show_default=True,
    help="Page to write.",
)
def demo(html: Path) -> None:
    """Start a mesh with two index shards, ingest, and search in all eight task shapes."""
    searched = asyncio.run(_demo(fetch_pictures()))
    _summarise(searched)
    html.write_text(search_page([s[1:] for s in searched], "mmesh: eight task shapes"), "utf-8")
    console().print(f"\nThe same with pictures: {html.resolve().as_uri()}", soft_wrap=True)


async def _demo(pictures: Path) -> list[Searched]:
    with tempfile.TemporaryDirectory(prefix="mmesh-demo-") as data:
        settings = LocalSettings(Path(data), shards=2, port=0)
        console().print("starting encoder, two index shards, reranker and gateway ...")
        async with LocalMesh(settings) as mesh, AsyncClient(mesh.address) as client:
            console().print(f"ready {mesh.address}")
            await _ingest(client, pictures)
            return [await _search(client, *asked) for asked in searches(pictures)]


async def _ingest(client: AsyncClient, pictures: Path) -> None:
    candidates = demo_candidates(pictures)
    await client.create_collection(COLLECTION)

    def say(progress: Progress) -> None:
        console().print(f"ingested {progress.stored} of {len(candidates)}")

    report = await client.ingest(COLLECTION, candidates, on_progress=say)
    collection = await client.get_collection(COLLECTION)
    counts = {modality.value: count for modality, count in collection.candidates.items()}
    console().print(f"stored {report.stored}, rejected {len(report.rejected)}: {counts}")
    if report.rejected or report.stored != len(candidates):
        raise SystemExit(f"the demo's collection was not stored whole: {report.rejected}")


async def _search(client: AsyncClient, row: dict[str, Any], search: Search) -> Searched:
    (result,) = await client.search_batch([search])
    if not isinstance(result, SearchResult):
        raise result
    words = f'"{row["text"]}"' if row["text"] else ""
    picture = f"[part of {row['image']}]" if row["image"] else ""
    console().print()
    console().rule(row["shape"], align="left")
    console().print(" ".join(filter(None, (picture, words))), markup=False)
    console().print(row["instruction"], style="italic")
    console().print(hits_table(result))
    for line in footnotes(result):
        console().print(line, style="dim", markup=False)
    return row, search, result


def _summarise(searched: list[Searched]) -> None:
    console().print()
    rows = []
    for row, _, result in searched:
        first = result.hits[0].id if result.hits else ""
        rows.append([row["shape"], _modality(result), first, _place(row, result)])
    console().print(table(["task shape", "hits are", "first hit", "meant one at"], rows, "summary"))


def _modality(result: SearchResult) -> str:
    found: set[Modality] = {hit.modality for hit in result.hits}
    return ", ".join(sorted(modality.value for modality in found))


def _place(row: dict[str, Any], result: SearchResult) -> str:
    places = [hit.rank for hit in result.hits if hit.id == row["target"]]
    return str(places[0]) if places else f"below {LIMIT}"


if __name__ == "__main__":
    demo()
