"""Ingest streams: batches are encoded side by side, then stored and acknowledged in order."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mmesh.candidates import Candidate
from mmesh.content import Role
from mmesh.errors import DeadlineExceeded, InvalidField, MmeshError, Overloaded, Unavailable
from mmesh.serving.deadline import Deadline
from mmesh.vectors import FloatMatrix
from services.gateway import metrics
from services.gateway.ports import Encoded, Encoder, Index

Value = TypeVar("Value")
ATTEMPT_S = 30.0
PAUSE_S = 0.25
_CULPRIT = re.compile(r"(candidates|vectors)\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Given:
    """Vectors (n, dim) of n candidates, and the model that made them."""

    rows: FloatMatrix
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Candidates as they came: each with its number, or the error that it has already met."""

    sequence: int
    candidates: Sequence[Candidate | Refused]
    given: Given | None = None
    """A vector for each of them, if they were encoded elsewhere."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A candidate that is not stored, and why."""

    id: str
    number: int
    error: MmeshError


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a batch."""

    sequence: int
    stored: int
    token: str
    refused: Sequence[Refused]
    slowed_down: bool


class Ingester:
    """Stores the batches of ingest streams."""

    def __init__(self, encoder: Encoder, index: Index, *, window: int, patience_s: float) -> None:
        self._encoder, self._index = encoder, index
        self._window, self._patience_s = window, patience_s

    async def run(
        self, collection: str, ingest_id: str, batches: AsyncIterator[Batch]
    ) -> AsyncIterator[Stored]:
        """Yield what became of each batch, in order; up to `window` are under way at a time."""
        under_way: asyncio.Queue[asyncio.Task[Stored] | None] = asyncio.Queue(self._window)

        async def read() -> None:
            before: asyncio.Task[Stored] | None = None
            try:
                async for batch in batches:
                    name = f"{ingest_id}:{batch.sequence}"
                    before = asyncio.create_task(self._store(collection, name, batch, before))
                    await under_way.put(before)
            finally:
                await under_way.put(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await under_way.get()) is not None:
                yield await task
            await reader
        finally:
            reader.cancel()
            left = [under_way.get_nowait() for _ in range(under_way.qsize())]
            tasks = [task for task in left if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(reader, *tasks, return_exceptions=True)

    async def _store(
        self, collection: str, request_id: str, batch: Batch, before: asyncio.Task[Stored] | None
    ) -> Stored:
        """Encode a batch, then store it once the one before it is stored."""
        refused = [one for one in batch.candidates if isinstance(one, Refused)]
        numbered = [(n, c) for n, c in enumerate(batch.candidates) if isinstance(c, Candidate)]
        patience = _Patience(self._patience_s)
        kept: list[Row] = []
        token = ""
        if numbered and batch.given:
            vectors = batch.given
            kept = [Row(candidate, number, number) for number, candidate in numbered]
        elif numbered:
            encoded = await patience.keep_trying(lambda until: self._encode(numbered, until))
            vectors = Given(encoded.vectors, encoded.fingerprint)
            kept, problems = _sort_out(numbered, encoded)
            refused += problems
        if before is not None:
            await asyncio.wait([before])
            before.result()  # where one batch fails, those after it do too
        while kept:
            try:
                token = await patience.keep_trying(
                    lambda until: self._write(collection, request_id, kept, vectors, until)  # noqa: B023  # awaited at once
                )
                break
            except InvalidField as error:
                kept, problem = _without_culprit(kept, error)
                refused.append(problem)
        metrics.ingested_total.inc(len(kept))
        for one in refused:
            metrics.rejected_total.labels(one.error.reason).inc()
        refused.sort(key=lambda one: one.number)
        return Stored(batch.sequence, len(kept), token, refused, patience.was_overloaded)

    async def _encode(self, numbered: Sequence[Numbered], deadline: Deadline) -> Encoded:
        inputs = [(candidate.content, "") for _, candidate in numbered]
        return await self._encoder.encode(inputs, Role.CANDIDATE, deadline, skip_problems=True)

    async def _write(
        self,
        collection: str,
        request_id: str,
        rows: Sequence[Row],
        vectors: Given,
        deadline: Deadline,
    ) -> str:
        # The same batch sent again goes through the same refusals, so each write needs its own id.
        ids = "\n".join(row.candidate.id for row in rows)
        digest = hashlib.sha256(ids.encode()).hexdigest()[:16]
        return await self._index.upsert(
            collection,
            [row.candidate for row in rows],
            vectors.rows[[row.vector for row in rows]],
            vectors.fingerprint,
            f"{request_id}:{digest}",
            deadline,
        )


Numbered = tuple[int, Candidate]


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate that can be stored: its number in the batch, and that of its vector."""

    candidate: Candidate
    number: int
    vector: int


def _sort_out(numbered: Sequence[Numbered], encoded: Encoded) -> tuple[list[Row], list[Refused]]:
    rows, refused = [], []
    for place, (number, candidate) in enumerate(numbered):
        problem = encoded.problems.get(place)
        if problem is None:
            rows.append(Row(candidate, number, place))
        else:
            where = f"candidates[{number}]"
            error = problem.under(where) if isinstance(problem, InvalidField) else problem
            refused.append(Refused(candidate.id, number, error))
    return rows, refused


def _without_culprit(rows: Sequence[Row], error: InvalidField) -> tuple[list[Row], Refused]:
    """Take the row out that the index refused the write for; raise if it named none."""
    found = _CULPRIT.match(error.field)
    if found is None or int(found[2]) >= len(rows):
        raise error
    place = int(found[2])
    culprit = rows[place]
    field = f"{found[1]}[{culprit.number}]{error.field[found.end() :]}"
    problem = type(error)(field, error.problem)
    return [*rows[:place], *rows[place + 1 :]], Refused(
        culprit.candidate.id, culprit.number, problem
    )


class _Patience:
    """Tries again while a service is away or full, for a limited time."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self.was_overloaded = False

    async def keep_trying(self, attempt: Callable[[Deadline], Awaitable[Value]]) -> Value:
        while True:
            try:
                return await attempt(Deadline.after(ATTEMPT_S))
            except (Unavailable, Overloaded, DeadlineExceeded) as error:
                self.was_overloaded |= isinstance(error, Overloaded)
                pause = error.retry_after_s or PAUSE_S
                if time.monotonic() + pause > self._until:
                    raise
                await asyncio.sleep(pause)
