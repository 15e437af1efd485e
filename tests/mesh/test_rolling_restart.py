"""A rolling restart of two pods of each service, one process after another, under load.

Costs 25 s: eight processes are stopped and started anew.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from mmesh import AsyncClient, Candidate, Content
from mmesh.errors import MmeshError
from mmesh.local.plan import LocalSettings
from tests.effort import needs_full_effort, patient
from tests.mesh.doubled import DoubledMesh

MIN_READY_S = 1.0
"""Between a process that is ready and the next that is stopped; k8s/base takes 5 and 10."""
SEARCHES_PER_S, INGESTED_PER_S = 50, 20
STORED = 200


class Load:
    """Searches at a steady rate, and an ingest, until they are told to end."""

    def __init__(self, client: AsyncClient, token: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self.ended = asyncio.Event()
        self._client, self._token = client, token
        self.ingested = 0
        self.restarting = ""

    async def search(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                if self.ended.is_set():
                    break
                group.create_task(self._one(f"the harbour on day {number % STORED}"))
                await asyncio.sleep(1 / SEARCHES_PER_S)

    async def _one(self, query: str) -> None:
        try:
            result = await self._client.search(
                "pods", query, token=self._token, timeout=patient(10.0)
            )
        except MmeshError as error:
            self.outcomes[f"{error.reason}: {error.message}, beside {self.restarting}"] += 1
            return
        covered = result.coverage.shards_answered == result.coverage.shards_total
        whole = covered and len(result.hits) == 10 and not result.degradations
        problem = f"{len(result.hits)} hits, {result.degradations}, beside {self.restarting}"
        self.outcomes["whole" if whole else problem] += 1

    async def candidates(self) -> AsyncIterator[Candidate]:
        while not self.ended.is_set():
            yield Candidate(f"new-{self.ingested}", Content.of(f"ship {self.ingested}"))
            self.ingested += 1
            await asyncio.sleep(1 / INGESTED_PER_S)


async def ids_of(client: AsyncClient, collection: str) -> list[str]:
    found, token = [], ""
    while True:
        page = await client.list_candidates(collection, page_size=500, page_token=token)
        found += [candidate.id for candidate in page.candidates]
        if not (token := page.next_token):
            return found


@pytest.fixture
async def pods(tmp_path, loop_logs) -> AsyncIterator[DoubledMesh]:
    loop_logs.watch(tmp_path / "data" / "logs")
    encoders = ("lite", "lite")
    settings = LocalSettings(tmp_path / "data", encoders=encoders, replicas=2, metrics=False)
    async with DoubledMesh(settings) as pods:
        yield pods


@needs_full_effort
async def test_a_rolling_restart_of_everything_loses_no_call(pods):
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncClient(pods.target))
        await client.create_collection("pods")
        old = [Candidate(f"old-{n}", Content.of(f"the harbour on day {n}")) for n in range(STORED)]
        load = Load(client, (await client.upsert_candidates("pods", old)).token)
        searching = asyncio.create_task(load.search())
        ingesting: asyncio.Task[Any] = asyncio.create_task(
            client.ingest("pods", load.candidates(), batch_size=16)
        )
        ends = {}
        for service in pods.services:
            load.restarting = service.name
            ends[service.name] = await pods.stop(service)
            await pods.start(service)
            await asyncio.sleep(MIN_READY_S)
        load.ended.set()
        report = await ingesting
        await searching
        assert set(ends.values()) == {0}, ends
        assert set(load.outcomes) == {"whole"}, load.outcomes
        assert (report.stored, report.rejected) == (load.ingested, ())
        wanted = [f"old-{n}" for n in range(STORED)] + [f"new-{n}" for n in range(load.ingested)]
        assert sorted(await ids_of(client, "pods")) == sorted(wanted)
