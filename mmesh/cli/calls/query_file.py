"""Searches from a JSON Lines file: batches in flight, a line of JSON for each answer, in order."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmesh.cli.calls.clients import open_async_client
from mmesh.cli.files.sources.items import FileEnded, Unreadable
from mmesh.cli.files.sources.json_rows import json_rows
from mmesh.cli.files.sources.row_shape import id_of
from mmesh.cli.files.sources.rows import content_of
from mmesh.cli.output.rows import error_row, result_row
from mmesh.errors import MessageTooLarge, MmeshError
from mmesh.search import TARGETS, Search, SearchResult

if TYPE_CHECKING:
    from mmesh.aio import AsyncClient

BATCH, BATCH_BYTES, IN_FLIGHT = 32, 16 << 20, 4
"""Searches of a batch at most, their bytes (a larger search goes alone), and batches at a time."""


def run_file(path: Path, template: Search, timeout: float, address: str) -> int:
    """Run the queries of a file; return the exit code, 1 when any of them failed."""
    return asyncio.run(_run_file(path, template, timeout, address))


async def _run_file(path: Path, template: Search, timeout: float, address: str) -> int:
    failed = 0
    async with open_async_client(address) as client:
        async for row in _answers(client, path, template, timeout):
            failed += "error" in row
            line = json.dumps(row, ensure_ascii=False)
            line = line.encode("utf-8", "backslashreplace").decode()  # names of files may be odd
            click.echo(line)
    return 1 if failed else 0


async def _answers(
    client: AsyncClient, path: Path, template: Search, timeout: float
) -> AsyncIterator[dict[str, Any]]:
    """Yield an answer for each line, in order, with several batches in flight."""
    batches = _batches(_lines(path, template))
    flying: list[asyncio.Task[list[dict[str, Any]]]] = []
    while True:
        while len(flying) < IN_FLIGHT and (batch := next(batches, None)):
            flying.append(asyncio.create_task(_answer_batch(client, batch, timeout)))
        if not flying:
            return
        for row in await flying.pop(0):
            yield row


Line = tuple[str, Search | Unreadable]


def _batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    batch: list[Line] = []
    filled = 0
    for line in lines:
        size = line[1].query.size if isinstance(line[1], Search) else 0
        if batch and (len(batch) == BATCH or filled + size > BATCH_BYTES):
            yield batch
            batch, filled = [], 0
        batch.append(line)
        filled += size
    if batch:
        yield batch


def _lines(path: Path, template: Search) -> Iterator[Line]:
    for number, row in enumerate(_rows(path), start=1):
        name = f"{path.name}:{number}"
        if isinstance(row, Unreadable):
            yield name, row
            continue
        try:
            name = id_of(row) or name
            yield name, _search_of(row, template, path.parent)
        except (OSError, ValueError, MmeshError) as error:
            yield name, Unreadable(name, str(error))


def _rows(path: Path) -> Iterator[dict[str, Any] | Unreadable]:
    try:
        yield from json_rows(path)
    except (FileEnded, EOFError, zlib.error) as error:
        yield Unreadable(path.name, str(error))


def _search_of(row: dict[str, Any], template: Search, folder: Path) -> Search:
    target = row.get("target")
    if target and not (isinstance(target, str) and target in TARGETS):
        raise ValueError(f"has the target {target!r}; use one of {', '.join(TARGETS)}")
    return replace(
        template,
        query=content_of(row, folder),
        instruction=row.get("instruction") or template.instruction,
        target=TARGETS[target] if target else template.target,
    )


async def _answer_batch(
    client: AsyncClient, batch: list[Line], timeout: float
) -> list[dict[str, Any]]:
    searches = [one for _, one in batch if isinstance(one, Search)]
    answers = iter(await _outcomes(client, searches, timeout) if searches else ())
    return [{"id": name} | _row(one, answers) for name, one in batch]


async def _outcomes(
    client: AsyncClient, searches: list[Search], timeout: float
) -> list[SearchResult | MmeshError]:
    """Return what each search ends with; those that fill more than a message are asked in parts."""
    try:
        return await client.search_batch(searches, timeout=timeout)
    except MessageTooLarge as error:
        if len(searches) == 1:
            return [error]
        half = len(searches) // 2
        first = await _outcomes(client, searches[:half], timeout)
        return first + await _outcomes(client, searches[half:], timeout)
    except MmeshError as error:
        return [error] * len(searches)


def _row(one: Search | Unreadable, answers: Iterator[SearchResult | MmeshError]) -> dict[str, Any]:
    if isinstance(one, Unreadable):
        return {"error": {"reason": "UNREADABLE", "message": one.reason, "metadata": {}}}
    outcome = next(answers)
    return error_row(outcome) if isinstance(outcome, MmeshError) else result_row(outcome)
