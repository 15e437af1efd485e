"""Ingest streams with back-pressure: batches are encoded side by side, then stored in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from mmesh.candidates import Candidate
from mmesh.errors import DeadlineExceeded, Overloaded, Unavailable
from mmesh.serving.deadline import Deadline
from mmesh.values.patience import Patience
from services.gateway import metrics
from services.gateway.interfaces import Embeddings
from services.gateway.writes.byte_window import ByteWindow
from services.gateway.writes.draft import Draft, Noticed, Refused, Upsert

Value = TypeVar("Value")
ATTEMPT_S, LONGEST_ATTEMPT_S = 30.0, 120.0
"""Time of an attempt, which doubles when it was too short, as it is for a slow encoder."""
PAUSE_S = 0.25
CALM_BATCHES = 16
"""Batches in a row without an overload after which it is over."""


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

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        contents = (c.content.size for c in self.candidates if isinstance(c, Candidate))
        return sum(contents) + (self.given.rows.nbytes if self.given else 0)


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a batch."""

    sequence: int
    stored: int
    token: str
    refused: Sequence[Refused]
    was_overloaded: bool
    """Whether it had to wait for a service that was full."""
    noticed: Sequence[Noticed] = ()


class Ingester:
    """Stores the batches of ingest streams, each as a draft that `begin` begins.

    Args:
        begin: begins the draft of an upsert.
        window: batches of a stream that are under way at a time.
        most_bytes: of batches of all streams that are under way; twice as much may wait for that.
        patience_s: how long a batch waits for a service that is away.
    """

    def __init__(
        self, begin: Callable[[Upsert], Draft], *, window: int, most_bytes: int, patience_s: float
    ) -> None:
        self._begin = begin
        self._window, self._patience_s = window, patience_s
        self._bytes = ByteWindow(most_bytes, 2 * most_bytes)

    async def run(
        self, stream: Stream, batches: AsyncIterator[Batch]
    ) -> AsyncGenerator[Stored, None]:
        """Yield what became of each batch, in order.

        Of the batches that were read, `window` at most have not been yielded.
        """
        under_way: asyncio.Queue[asyncio.Task[Stored] | None] = asyncio.Queue()
        free = asyncio.Semaphore(self._window)

        async def read() -> None:
            before: asyncio.Task[Stored] | None = None
            try:
                await free.acquire()
                async for batch in batches:
                    taken = await self._bytes.take(batch.size)
                    before = asyncio.create_task(self._store(stream, batch, before))
                    before.add_done_callback(partial(self._give_back, taken))
                    under_way.put_nowait(before)
                    del batch  # which would be held until the next one comes
                    await free.acquire()
            finally:
                under_way.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await under_way.get()) is not None:
                yield await task
                free.release()
            await reader
        finally:
            reader.cancel()
            left = [under_way.get_nowait() for _ in range(under_way.qsize())]
            tasks = [task for task in left if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(reader, *tasks, return_exceptions=True)

    def _give_back(self, taken: int, _: object) -> None:
        self._bytes.give_back(taken)

    async def _store(
        self, stream: Stream, batch: Batch, before: asyncio.Task[Stored] | None
    ) -> Stored:
        """Encode a batch, then store it once the one before it is stored."""
        numbered = [(n, c) for n, c in enumerate(batch.candidates) if isinstance(c, Candidate)]
        name = f"{stream.ingest_id}:{batch.sequence}"
        draft = self._begin(Upsert(stream.collection, numbered, name, batch.given, stream.fill))
        attempts = _Attempts(self._patience_s)
        if numbered:
            await attempts.keep_trying(draft.encode)
        if before is not None:
            await asyncio.wait([before])
            before.result()  # where one batch fails, those after it do too
        token = await attempts.keep_trying(draft.store_good) if numbered else ""
        refused = [one for one in batch.candidates if isinstance(one, Refused)] + draft.refused
        refused.sort(key=lambda one: one.number)
        for one in refused:
            metrics.rejected_total.labels(one.error.reason).inc()
        count = len(batch.candidates) - len(refused)
        metrics.ingested_total.inc(count)
        noticed = draft.noticed
        return Stored(batch.sequence, count, token, refused, attempts.was_overloaded, noticed)


class BatchLimit:
    """How many candidates a batch may have: few after an overload, all again once it is over.

    Args:
        few: candidates of a batch after one that met an overload.
        most: candidates of a batch while all is well.
    """

    def __init__(self, few: int, most: int) -> None:
        self._few, self._most = few, most
        self._calm: int | None = None  # batches since the last overload; None when it is over

    def note(self, stored: Stored) -> int | None:
        """Take note of a batch; return the limit if it is another one than before."""
        if stored.was_overloaded:
            is_new, self._calm = self._calm is None, 0
            return self._few if is_new else None
        if self._calm is None:
            return None
        self._calm += 1
        if self._calm < CALM_BATCHES:
            return None
        self._calm = None
        return self._most


async def until(
    stop: asyncio.Event, batches: AsyncGenerator[Batch, None]
) -> AsyncGenerator[Batch, None]:
    """Yield batches until they end or `stop` is set, even while none comes; then close them."""
    stopping = asyncio.ensure_future(stop.wait())
    coming: asyncio.Future[Batch] | None = None
    try:
        while not stop.is_set():
            coming = asyncio.ensure_future(anext(batches))
            await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                return
            try:
                come = [coming.result()]
            except StopAsyncIteration:
                return
            coming = None
            yield come.pop()  # held by nobody here while the next one is waited for
    finally:
        waiting: list[asyncio.Future[Any]] = [stopping] if coming is None else [stopping, coming]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await batches.aclose()


class _Attempts:
    """Tries again while a service is away or full, for a limited time."""

    def __init__(self, patience_s: float) -> None:
        self._patience = Patience(patience_s)
        self._attempt_s = ATTEMPT_S
        self.was_overloaded = False

    async def keep_trying(self, attempt: Callable[[Deadline], Awaitable[Value]]) -> Value:
        while True:
            try:
                answer = await attempt(Deadline.after(self._attempt_s))
            except (Unavailable, Overloaded, DeadlineExceeded) as error:
                self.was_overloaded |= isinstance(error, Overloaded | DeadlineExceeded)
                if isinstance(error, DeadlineExceeded):
                    self._attempt_s = min(2 * self._attempt_s, LONGEST_ATTEMPT_S)
                pause = error.retry_after_s or PAUSE_S
                if self._patience.is_over_after_failure(pause):
                    raise
                await asyncio.sleep(pause)
            else:
                self._patience.answered()
                return answer
