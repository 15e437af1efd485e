"""A whole mesh on this machine: the four services as processes, watched and restarted.

The same programs and the same API as in a cluster, on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Self

import grpc

from mmesh.aio import AsyncClient
from mmesh.errors import MmeshError
from mmesh.local.plan import (
    LocalSettings,
    MeshFailed,
    Service,
    place_of,
    plan_index,
    plan_services,
)
from mmesh.mesh_status import MeshStatus, ServiceRole

START_S = 120.0
LOAD_S = 3600.0
"""Longest time that index processes may take to load when the mesh is scaled."""
SWITCH_S = 60.0
"""Longest time that the gateway may take to notice new index processes, or that some are gone."""
_LOOK_S = 0.1


_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _CALM_S = 0.2, 5.0, 30.0


@dataclass
class LocalMesh:
    """A running mesh; an async context manager that drains and stops it in the end.

    `say` gets one line for everything that an operator should know.
    """

    settings: LocalSettings = field(default_factory=LocalSettings)
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        """Plan the services; nothing is started yet."""
        self.services: list[Service] = []
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._scaling = asyncio.Lock()
        self._lock: IO[str] | None = None

    @property
    def address(self) -> str:
        """Address of the gateway."""
        return self.services[-1].address

    async def __aenter__(self) -> Self:
        """Start every service and return once the mesh answers.

        Raises:
            MeshFailed: a service does not come up, or another mesh uses the data folder.
        """
        self._take_folder()
        self.services = plan_services(self.settings)
        self._write_addresses(self.index)
        self._write_description()
        try:
            for service in self.services:
                await self._start(service)
            await asyncio.gather(*(self._wait_ready(one, START_S) for one in self.services))
            wanted = _ShardSet(self.settings.shards, self.settings.replicas)
            await self._wait_for_gateway(wanted.is_in_use, "does not find the index")
        except BaseException:
            await self._stop_all()
            raise
        self._watch(self.services)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop_all()

    def _take_folder(self) -> None:
        folder = self.settings.data
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MeshFailed(
                f"another mesh runs on {folder}; stop it or choose another --data"
            ) from None

    @property
    def index(self) -> list[Service]:
        """The index processes."""
        return [service for service in self.services if service.shard_count]

    async def scale(
        self, shards: int, replicas: int, tell: Callable[[str], None] | None = None
    ) -> None:
        """Change the number of shards and replicas while the mesh goes on answering.

        New processes load beside the old ones, which are stopped once the gateway uses the new
        ones. When that fails the mesh stays as it was. `tell` gets a line for every step.

        Raises:
            MeshFailed: new processes do not come up, or the gateway does not take them.
        """
        async with self._scaling:
            tell = tell or self.say
            old = self.index
            kept = [s for s in old if s.shard_count == shards and s.replica < replicas]
            tag = kept[0].name.removeprefix(f"index-{kept[0].shard}") if kept else f"-of-{shards}"
            planned = plan_index(replace(self.settings, shards=shards, replicas=replicas), tag)
            places = {place_of(service) for service in kept}
            added = [service for service in planned if place_of(service) not in places]
            await self._add(old, added, _ShardSet(shards, replicas), tell)
            self.settings = replace(self.settings, shards=shards, replicas=replicas)
            gone = [service for service in old if service not in kept]
            await self._take_out(gone, _ShardSet(shards, replicas), tell)
            tell(f"the mesh has {_words(shards, replicas)}")

    async def _add(
        self,
        old: Sequence[Service],
        added: Sequence[Service],
        wanted: _ShardSet,
        tell: Callable[[str], None],
    ) -> None:
        """Start processes and wait until the gateway searches them; on failure they are gone."""
        if not added:
            return
        tell(f"loading {', '.join(service.name for service in added)}")
        self.services[-1:-1] = added  # the gateway stays the last
        self._write_description()
        try:
            for service in added:
                await self._start(service)
            await asyncio.gather(*(self._wait_ready(service, LOAD_S) for service in added))
            self._watch(added)
            self._write_addresses([*old, *added])
            await self._wait_for_gateway(wanted.is_in_use, "does not use the new processes")
        except BaseException:
            self._write_addresses(old)
            await self._end(added)
            raise
        tell("the gateway uses them")

    async def _take_out(
        self, gone: Sequence[Service], wanted: _ShardSet, tell: Callable[[str], None]
    ) -> None:
        """Stop processes, as soon as the gateway has forgotten them."""
        left = [service for service in self.index if service not in gone]
        self._write_addresses(sorted(left, key=lambda s: (s.replica, s.shard)))
        if not gone:
            return
        try:
            await self._wait_for_gateway(wanted.is_all, "still knows the old processes")
        finally:
            tell(f"stopping {', '.join(service.name for service in gone)}")
            await self._end(gone)

    async def _end(self, services: Sequence[Service]) -> None:
        watchers = [self._watchers.pop(s.name) for s in services if s.name in self._watchers]
        await _cancel(watchers)
        await self._stop(services)
        self.services = [service for service in self.services if service not in services]
        self._write_description()

    async def _wait_for_gateway(self, holds: Callable[[MeshStatus], bool], problem: str) -> None:
        until = time.monotonic() + SWITCH_S
        async with AsyncClient(self.address) as client:
            while True:
                with contextlib.suppress(MmeshError):
                    if holds(await client.get_status(timeout=5.0)):
                        return
                if time.monotonic() > until:
                    raise MeshFailed(f"after {SWITCH_S:.0f} s the gateway {problem}")
                await asyncio.sleep(_LOOK_S)

    def _write_addresses(self, index: Sequence[Service]) -> None:
        """Tell the gateway where index processes are; it looks at the file all the time."""
        _write_json(self.settings.data / "index.json", [service.address for service in index])

    def _write_description(self) -> None:
        described = {
            service.name: {"address": service.address, "metrics": service.metrics}
            for service in self.services
        }
        _write_json(self.settings.data / "mesh.json", {"services": described})

    async def _start(self, service: Service) -> None:
        module = service.name.partition("-")[0]
        command = [sys.executable, "-m", f"services.{module}", *service.arguments]
        with (self.settings.data / "logs" / f"{service.name}.log").open("ab") as log:
            service.process = await asyncio.create_subprocess_exec(
                *command, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **service.environment},
                start_new_session=True,
            )  # fmt: skip
        service.started_at = time.monotonic()

    async def _wait_ready(self, service: Service, patience_s: float) -> None:
        until = time.monotonic() + patience_s
        while not await is_serving(service.address, service.health):
            if service.pid is None:
                raise MeshFailed(
                    f"{service.name} ended while it started: {self._last_words(service)}"
                )
            if time.monotonic() > until:
                raise MeshFailed(f"{service.name} is not ready after {patience_s:.0f} s")
            await asyncio.sleep(_LOOK_S)

    def _last_words(self, service: Service) -> str:
        path = self.settings.data / "logs" / f"{service.name}.log"
        lines = path.read_text(errors="replace").strip().splitlines()
        return (lines[-1][:500] if lines else "it said nothing") + f" (see {path})"

    def _watch(self, services: Sequence[Service]) -> None:
        for service in services:
            self._watchers[service.name] = asyncio.create_task(self._keep_up(service))

    async def _keep_up(self, service: Service) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            assert service.process is not None
            code = await service.process.wait()
            calm = time.monotonic() - service.started_at > _CALM_S
            pause = _FIRST_PAUSE_S if calm else min(2 * pause, _LONGEST_PAUSE_S)
            self.say(f"{service.name} died ({_cause(code)}); restarting it in {pause:.1f} s")
            await asyncio.sleep(pause)
            service.restarts += 1
            await self._start(service)
            with contextlib.suppress(MeshFailed):
                await self._wait_ready(service, START_S)
                self.say(f"{service.name} is back")

    async def _stop_all(self) -> None:
        """Drain in the order of the calls: the gateway first, what it calls afterwards."""
        await _cancel(self._watchers.values())  # first, or one of them starts a service again
        await self._stop(self.services[-1:])
        await self._stop(self.services[:-1])
        if self._lock is not None:
            self._lock.close()

    async def _stop(self, services: Sequence[Service]) -> None:
        running = [s for s in services if s.pid is not None and s.process is not None]
        for service in running:
            with contextlib.suppress(ProcessLookupError):
                service.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]  # running
        for service in running:
            try:
                await asyncio.wait_for(service.process.wait(), 30)  # type: ignore[union-attr]
            except TimeoutError:
                self.say(f"{service.name} does not stop; killing it")
                service.process.kill()  # type: ignore[union-attr]


class _ShardSet:
    """A wanted shard set, compared with what the gateway says of its processes."""

    def __init__(self, shards: int, replicas: int) -> None:
        self._shard_count = shards
        self._places = {
            (shard, shards, replica) for shard in range(shards) for replica in range(replicas)
        }

    def is_in_use(self, status: MeshStatus) -> bool:
        """Tell whether these shards and replicas are searched, whatever else there is."""
        return status.shard_count == self._shard_count and self._places <= _serving(status)

    def is_all(self, status: MeshStatus) -> bool:
        """Tell whether there is nothing else."""
        return self._places == _serving(status)


def _serving(status: MeshStatus) -> set[tuple[int, int, int]]:
    """Return shard, shard count and replica of the index processes that serve."""
    return {
        (one.shard, one.shard_count, one.replica)
        for one in status.services
        if one.role is ServiceRole.INDEX and one.is_serving
    }


def _words(shards: int, replicas: int) -> str:
    return f"{shards} shard{'s'[: shards > 1]}, {replicas} process{'es'[: 2 * (replicas > 1)]} each"


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _write_json(path: Path, content: object) -> None:
    """Write a file so that a reader finds the old content or the new, never a part."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=2) + "\n")
    new.replace(path)


async def is_serving(address: str, service: str) -> bool:
    """Ask a server's health service whether `service` is ready."""
    # One message with one string field, spelled out: the SDK does without the health package.
    request = b"\x0a" + bytes([len(service)]) + service.encode()
    async with grpc.aio.insecure_channel(address) as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            return bool(await check(request, timeout=2.0) == b"\x08\x01")
        except grpc.aio.AioRpcError:
            return False


def _cause(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
