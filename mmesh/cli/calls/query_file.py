"""Searches from a JSON Lines file: batches in flight, a line of JSON for each answer, in order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmesh.cli.calls.clients import open_async_client
from mmesh.cli.files.sources import Unreadable, content_of, json_rows
from mmesh.cli.output.rows import error_row, result_row
from mmesh.content import Modality
from mmesh.errors import MmeshError
from mmesh.search import Search, SearchResult

if TYPE_CHECKING:
    from mmesh.aio import AsyncClient

BATCH, IN_FLIGHT = 32, 4
ANY = "any"
"""A target of any modality."""


def run_file(path: Path, template: Search, timeout: float, address: str) -> int:
    """Run the queries of a file; return the exit code, 1 when any of them failed."""
    return asyncio.run(_run_file(path, template, timeout, address))


async def _run_file(path: Path, template: Search, timeout: float, address: str) -> int:
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
    target = row.get("target") or (template.target.value if template.target else ANY)
    return replace(
        template,
        query=content_of(row, folder),
        instruction=row.get("instruction") or template.instruction,
        target=None if target == ANY else Modality(target),
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
