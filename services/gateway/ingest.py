"""Ingest streams: batches are encoded and stored side by side, and acknowledged in order."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mmesh.candidates import Candidate
from mmesh.content import Role
from mmesh.errors import DeadlineExceeded, InvalidField, MmeshError, Overloaded, Unavailable
from mmesh.serving.deadline import Deadline
from services.gateway import metrics
from services.gateway.ports import Encoder, Index

Value = TypeVar("Value")
ATTEMPT_S = 30.0
PAUSE_S = 0.25
_CANDIDATE = re.compile(r"candidates\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Batch:
    """Candidates as they came: each with its number, or the error that it has already met."""

    sequence: int
    candidates: Sequence[Candidate | Refused]


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
            try:
                async for batch in batches:
                    work = self._store(collection, f"{ingest_id}:{batch.sequence}", batch)
                    await under_way.put(asyncio.create_task(work))
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

    async def _store(self, collection: str, request_id: str, batch: Batch) -> Stored:
        refused = [one for one in batch.candidates if isinstance(one, Refused)]
        numbered = [(n, c) for n, c in enumerate(batch.candidates) if isinstance(c, Candidate)]
        patience = _Patience(self._patience_s)
        token = ""
        while numbered:
            try:
                numbered, problems, token = await patience.keep_trying(
                    lambda deadline: self._attempt(collection, request_id, numbered, deadline)  # noqa: B023  # awaited at once
                )
                refused += problems
                break
            except InvalidField as error:
                numbered, problem = _without_culprit(numbered, error)
                refused.append(problem)
        metrics.ingested_total.inc(len(numbered))
        for one in refused:
            metrics.rejected_total.labels(one.error.reason).inc()
        refused.sort(key=lambda one: one.number)
        return Stored(batch.sequence, len(numbered), token, refused, patience.was_overloaded)

    async def _attempt(
        self,
        collection: str,
        request_id: str,
        numbered: Sequence[tuple[int, Candidate]],
        deadline: Deadline,
    ) -> tuple[list[tuple[int, Candidate]], list[Refused], str]:
        """Encode and store what can be; return what was stored, what was refused, and the token."""
        inputs = [(candidate.content, "") for _, candidate in numbered]
        encoded = await self._encoder.encode(inputs, Role.CANDIDATE, deadline, skip_problems=True)
        good = [i for i in range(len(numbered)) if i not in encoded.problems]
        refused = [
            Refused(numbered[i][1].id, numbered[i][0], error)
            for i, error in encoded.problems.items()
        ]
        kept = [numbered[i] for i in good]
        if not kept:
            return [], refused, ""
        candidates = [candidate for _, candidate in kept]
        vectors = encoded.vectors[good]
        token = await self._index.upsert(
            collection, candidates, vectors, encoded.fingerprint, request_id, deadline
        )
        return kept, refused, token


def _without_culprit(
    numbered: Sequence[tuple[int, Candidate]], error: InvalidField
) -> tuple[list[tuple[int, Candidate]], Refused]:
    """Take the candidate out that the index refused the batch for; raise if it named none."""
    found = _CANDIDATE.match(error.field)
    if found is None or int(found[1]) >= len(numbered):
        raise error
    place = int(found[1])
    number, candidate = numbered[place]
    rest = [*numbered[:place], *numbered[place + 1 :]]
    field = error.field[found.end() + 1 :] or "candidate"
    return rest, Refused(candidate.id, number, type(error)(field, error.problem))


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
