"""Searches and writes at a steady rate beside a fault, and what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from PIL import Image

from mmesh import AsyncClient, Candidate, Content, Rerank
from mmesh.errors import MmeshError
from tests.effort import patient

COLLECTION = "harbour"
STORED = 60
PAUSE_S = 0.3
"""Between two searches of a kind, and between two writes."""
CALL_S = patient(2.0)
KNOWN = [f"the harbour on day {number}" for number in range(6)]
"""Queries whose embeddings gateways remember."""
PLAIN = Rerank(candidates=0)
WHOLE, WRITTEN = "whole", "stored"
"""Outcomes of calls of which nothing else is to be said."""


def degraded(*reasons: str) -> str:
    """Return the outcome of a search that was answered without something."""
    return f"answered with {' and '.join(sorted(set(reasons)))}"


def failed(reason: str) -> str:
    """Return the outcome of a call that was not answered."""
    return f"failed with {reason}"


FILLER_BYTES = 1500
"""Of each candidate, so that writes need room on a disk."""


@dataclass(frozen=True)
class Call:
    """What became of a call: its kind, what was said of it, and when it was made."""

    kind: str
    outcome: str
    begun: float
    took_s: float


class Load:
    """Makes calls of five kinds.

    A `known` search has a cached embedding and is not reranked, a `new` one has another query each
    time, a `reranked` one is judged; `text` and `picture` store a candidate.
    """

    def __init__(self, client: AsyncClient) -> None:
        self.calls: list[Call] = []
        self._client = client
        self._turn = itertools.count()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Make calls until the end of the context, and wait for those that run then."""
        ended = asyncio.Event()
        kinds = {"known": self._known, "new": self._new, "reranked": self._reranked}
        async with asyncio.TaskGroup() as group:
            makers = [group.create_task(self._keep(k, c, ended)) for k, c in kinds.items()]
            makers.append(group.create_task(self._keep_writing("text", self._text, ended)))
            makers.append(group.create_task(self._keep_writing("picture", self._picture, ended)))
            try:
                yield
            finally:
                ended.set()
                await asyncio.gather(*makers)

    def during(self, begun: float, ended: float) -> list[Call]:
        """Return the calls that began and ended in a time."""
        return [c for c in self.calls if begun <= c.begun and c.begun + c.took_s <= ended]

    async def _keep(
        self, kind: str, call: Callable[[], Awaitable[str]], ended: asyncio.Event
    ) -> None:
        """Make calls at a rate, however long the earlier ones take."""
        async with asyncio.TaskGroup() as group:
            while not ended.is_set():
                group.create_task(self._note(kind, call))
                await asyncio.sleep(PAUSE_S)

    async def _keep_writing(
        self, kind: str, call: Callable[[], Awaitable[str]], ended: asyncio.Event
    ) -> None:
        """Make one call after another."""
        while not ended.is_set():
            await self._note(kind, call)
            await asyncio.sleep(PAUSE_S)

    async def _note(self, kind: str, call: Callable[[], Awaitable[str]]) -> None:
        begun = time.monotonic()
        try:
            outcome = await call()
        except MmeshError as error:
            outcome = failed(error.reason)
        self.calls.append(Call(kind, outcome, begun, time.monotonic() - begun))

    async def _known(self) -> str:
        return await self._search(KNOWN[next(self._turn) % len(KNOWN)], PLAIN)

    async def _new(self) -> str:
        return await self._search(f"a ship with the number {secrets.token_hex(4)}", PLAIN)

    async def _reranked(self) -> str:
        return await self._search(KNOWN[next(self._turn) % len(KNOWN)], Rerank(candidates=10))

    async def _search(self, query: str, rerank: Rerank) -> str:
        result = await self._client.search(
            COLLECTION, query, target="text", rerank=rerank, timeout=CALL_S
        )
        assert result.hits, "nothing was found"
        if not result.degradations:
            return WHOLE
        return degraded(*(degradation.reason for degradation in result.degradations))

    async def _text(self) -> str:
        return await self._write(Content.of(f"the ship {secrets.token_hex(6)}"))

    async def _picture(self) -> str:
        data = io.BytesIO()
        Image.frombytes("RGB", (8, 8), secrets.token_bytes(192)).save(data, "PNG")
        return await self._write(Content.of(data.getvalue()))

    async def _write(self, content: Content) -> str:
        filler = {"filler": secrets.token_hex(FILLER_BYTES // 2)}
        candidate = Candidate(f"new-{secrets.token_hex(6)}", content, filler)
        await self._client.upsert_candidates(COLLECTION, [candidate], timeout=CALL_S)
        return WRITTEN


async def fill(client: AsyncClient) -> None:
    """Create the collection with what searches find."""
    await client.create_collection(COLLECTION)
    candidates = [
        Candidate(f"old-{n}", Content.of(f"the harbour on day {n}")) for n in range(STORED)
    ]
    report = await client.upsert_candidates(COLLECTION, candidates, timeout=patient(10.0))
    await client.search(COLLECTION, KNOWN[0], token=report.token, timeout=patient(10.0))


async def warm(address: str) -> None:
    """Let one gateway remember the embeddings of the known queries."""
    async with AsyncClient(address) as client:
        for query in KNOWN:
            await client.search(COLLECTION, query, timeout=patient(10.0))
