"""Ingest streams: batches are encoded side by side, then stored and acknowledged in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mmesh.candidates import Candidate
from mmesh.errors import DeadlineExceeded, Overloaded, Unavailable
from mmesh.serving.deadline import Deadline
from services.gateway import metrics
from services.gateway.interfaces import Embeddings
from services.gateway.writes.draft import Draft, Refused, Upsert

Value = TypeVar("Value")
ATTEMPT_S = 30.0
PAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class Stream:
    """What an ingest is for; `ingest_id` names it over reconnections."""

    collection: str
    ingest_id: str
    fill: bool = False
    """Store only what the collection lacks and its mirror has."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Candidates as they came: each with its number, or the error that it has already met."""

    sequence: int
    candidates: Sequence[Candidate | Refused]
    given: Embeddings | None = None
    """A vector for each of them, if they were encoded elsewhere."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a batch."""

    sequence: int
    stored: int
    token: str
    refused: Sequence[Refused]
    slowed_down: bool


class Ingester:
    """Stores the batches of ingest streams, each as a draft that `begin` begins."""

    def __init__(self, begin: Callable[[Upsert], Draft], *, window: int, patience_s: float) -> None:
        self._begin = begin
        self._window, self._patience_s = window, patience_s

    async def run(self, stream: Stream, batches: AsyncIterator[Batch]) -> AsyncIterator[Stored]:
        """Yield what became of each batch, in order; up to `window` are under way at a time."""
        under_way: asyncio.Queue[asyncio.Task[Stored] | None] = asyncio.Queue(self._window)

        async def read() -> None:
            before: asyncio.Task[Stored] | None = None
            try:
                async for batch in batches:
                    before = asyncio.create_task(self._store(stream, batch, before))
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
        self, stream: Stream, batch: Batch, before: asyncio.Task[Stored] | None
    ) -> Stored:
        """Encode a batch, then store it once the one before it is stored."""
        numbered = [(n, c) for n, c in enumerate(batch.candidates) if isinstance(c, Candidate)]
        name = f"{stream.ingest_id}:{batch.sequence}"
        draft = self._begin(Upsert(stream.collection, numbered, name, batch.given, stream.fill))
        patience = _Patience(self._patience_s)
        if numbered:
            await patience.keep_trying(draft.encode)
        if before is not None:
            await asyncio.wait([before])
            before.result()  # where one batch fails, those after it do too
        token = await patience.keep_trying(draft.store_good) if numbered else ""
        refused = [one for one in batch.candidates if isinstance(one, Refused)] + draft.refused
        refused.sort(key=lambda one: one.number)
        for one in refused:
            metrics.rejected_total.labels(one.error.reason).inc()
        count = len(batch.candidates) - len(refused)
        metrics.ingested_total.inc(count)
        return Stored(batch.sequence, count, token, refused, patience.was_overloaded)


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
