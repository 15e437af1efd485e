"""Faults: each breaks something real when it is entered, and mends it when it is left."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from mmesh import AsyncClient
from mmesh.errors import MmeshError
from mmesh.local.plan import Service
from mmesh.testing.postgres import PostgresServer
from mmesh.testing.s3 import S3Server
from tests.effort import patient
from tests.mesh.doubled import DoubledMesh
from tests.scenarios.load import COLLECTION, KNOWN, PLAIN

MAX_RUNNING = 16
"""Searches that a gateway admits at a time."""
TIMES = 4
"""Callers of an overload, for each search that is admitted."""


@dataclass(frozen=True)
class World:
    """A mesh, and the servers that it stands on."""

    pods: DoubledMesh
    database: PostgresServer
    s3: S3Server
    disk: Path | None
    """A small disk with the tables of the log, where the machine allows one."""


Fault = Callable[[World], AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def dead(world: World, *services: Service) -> AsyncIterator[None]:
    await asyncio.gather(*(world.pods.stop(one, signal.SIGKILL) for one in services))
    yield
    await world.pods.start(*services)


def dead_replica(world: World) -> AbstractAsyncContextManager[None]:
    return dead(world, world.pods.of("index")[0])


def dead_shard(world: World) -> AbstractAsyncContextManager[None]:
    return dead(world, *(one for one in world.pods.of("index") if one.shard == 1))


@contextlib.asynccontextmanager
async def stopped_database(world: World) -> AsyncIterator[None]:
    await asyncio.to_thread(world.database.stop)
    try:
        yield
    finally:
        await asyncio.to_thread(world.database.start)


@contextlib.asynccontextmanager
async def full_disk(world: World) -> AsyncIterator[None]:
    assert world.disk is not None
    filler = world.disk / "filler"
    await asyncio.to_thread(_fill, filler)
    try:
        yield
    finally:
        filler.unlink()


def _fill(path: Path) -> None:
    """Write until there is no room for a single page."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


@contextlib.asynccontextmanager
async def stalled(world: World, kind: str) -> AsyncIterator[None]:
    with world.pods.frozen(world.pods.of(kind)):
        yield


def stalled_encoders(world: World) -> AbstractAsyncContextManager[None]:
    return stalled(world, "encoder")


def stalled_judges(world: World) -> AbstractAsyncContextManager[None]:
    return stalled(world, "reranker")


@contextlib.asynccontextmanager
async def no_store(world: World) -> AsyncIterator[None]:
    await asyncio.to_thread(world.s3.kill)
    try:
        yield
    finally:
        await asyncio.to_thread(world.s3.start)


@contextlib.asynccontextmanager
async def overload(world: World) -> AsyncIterator[None]:
    """Let TIMES as many callers as one gateway admits search without a pause but the one asked."""
    async with AsyncClient(world.pods.gateways[0].address) as client, asyncio.TaskGroup() as group:
        callers = [group.create_task(_insist(client)) for _ in range(TIMES * MAX_RUNNING)]
        try:
            yield
        finally:
            for caller in callers:
                caller.cancel()


async def _insist(client: AsyncClient) -> None:
    for number in itertools.count():
        try:
            await client.search(
                COLLECTION, KNOWN[number % len(KNOWN)], rerank=PLAIN, timeout=patient(10.0)
            )
        except MmeshError as error:
            await asyncio.sleep(error.retry_after_s or 0.0)


@contextlib.asynccontextmanager
async def rolling_restart(world: World) -> AsyncIterator[None]:
    for service in world.pods.services:
        await world.pods.stop(service)
        await world.pods.start(service)
    yield
