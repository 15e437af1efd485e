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
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Self

from mmesh.local import rotation
from mmesh.local.observers import ADDRESSES, TARGETS, scrape_targets
from mmesh.local.plan import (
    LocalSettings,
    MeshFailed,
    Process,
    Service,
    place_of,
    plan_index,
    plan_services,
)
from mmesh.local.ports import is_taken
from mmesh.local.processes import Launcher
from mmesh.local.readiness import (
    Waiting,
    cause_of,
    is_serving,
    last_message,
    open_channel,
    status_of,
)
from mmesh.mesh_status import MeshStatus, ServiceRole

__all__ = ["LocalMesh", "is_serving"]

ORDER = "scale.json"
"""File in the data folder, an order to scale; see `mmesh.local.scaling`."""
SWITCH_S = 60.0
"""Longest time that the gateway may take to notice new index processes, or that some are gone."""
_LOOK_S = 0.05
_SHOW_S = 1.0
_STOP_S, _GIVE_UP_S = 30.0, 2.0
"""How long a process may take to drain, and to stop when it has not served yet."""
_TAKEN = "port {} is taken, perhaps by another mesh; choose another --port"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _CALM_S = 0.2, 5.0, 30.0


@dataclass
class LocalMesh:
    """A running mesh; an async context manager that drains and stops it in the end.

    `say` gets one line for everything that an operator should know. While the mesh starts,
    `show_waiting` is told every second what is waited for, and "" in the end.
    """

    settings: LocalSettings = field(default_factory=LocalSettings)
    say: Callable[[str], None] = print
    show_waiting: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        """Plan the services; nothing is started yet."""
        self.say = _unfailing(self.say)
        self.show_waiting = _unfailing(self.show_waiting)
        self.services: list[Service] = []
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._rotating: asyncio.Task[None] | None = None
        self._scaling = asyncio.Lock()
        self._lock: IO[str] | None = None
        self._launcher = Launcher(self.settings.data / "logs", self.say)
        self._waiting = Waiting(self._launcher.log_of, self.settings.start_timeout_s)

    @property
    def address(self) -> str:
        """Address of the gateway."""
        return self.services[-1].address

    async def __aenter__(self) -> Self:
        """Start every service and return once the mesh answers.

        Raises:
            MeshFailed: a service does not come up, or another mesh uses the data folder or port.
        """
        try:
            if self.settings.port and is_taken(self.settings.port):
                raise MeshFailed(_TAKEN.format(self.settings.port))
            self._take_folder()
            self.services = plan_services(self.settings)
            self._write_addresses(self.index)
            self._write_description()
            await self._start_all()
        except BaseException as failure:
            await self._stop_all(_GIVE_UP_S)
            if isinstance(failure, OSError):  # a full disk, a folder of somebody else
                raise MeshFailed(str(failure)) from failure
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop_all(_STOP_S)

    async def _start_all(self) -> None:
        showing = asyncio.create_task(self._keep_showing())
        try:
            await _together(self._bring_up(service) for service in self.services)
            self._watch(self.services)
            wanted = _ShardSet(self.settings.shards, self.settings.replicas)
            await self._wait_for_gateway(wanted.is_in_use, "does not find the index")
        finally:
            await _cancel([showing])
            self.show_waiting("")

    async def _keep_showing(self) -> None:
        while True:
            await asyncio.sleep(_SHOW_S)
            self.show_waiting(self._waiting.describe() or "the gateway to find all of them")

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
        for left in (ADDRESSES, ORDER):  # by a mesh that was killed
            (folder / left).unlink(missing_ok=True)

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
        try:
            self.services[-1:-1] = added  # the gateway stays the last
            self._write_description()
            await _together(self._bring_up(service) for service in added)
            self._watch(added)
            self._write_addresses([*old, *added])
            await self._wait_for_gateway(wanted.is_in_use, "does not use the new processes")
        except BaseException:
            with self._best_effort():
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
        with self._best_effort():
            self._write_description()

    @contextlib.contextmanager
    def _best_effort(self) -> Iterator[None]:
        """Do what is only said where it fails: what comes after it must be done."""
        try:
            yield
        except OSError as error:
            self.say(str(error))

    async def _wait_for_gateway(self, holds: Callable[[MeshStatus], bool], problem: str) -> None:
        until = time.monotonic() + SWITCH_S
        async with open_channel(self.address) as channel:
            while not holds(await status_of(channel)):
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
        _write_json(self.settings.data / TARGETS, scrape_targets(self.services))

    async def _start(self, service: Service) -> None:
        service.process = await self._launcher.start(service)
        service.started_at = time.monotonic()

    async def _bring_up(self, service: Service) -> None:
        await self._start(service)
        await self._waiting.wait_ready(service)

    def _watch(self, services: Sequence[Service]) -> None:
        for service in services:
            self._watchers[service.name] = asyncio.create_task(self._watch_over(service))
        self._rotating = self._rotating or asyncio.create_task(self._keep_logs_small())

    async def _watch_over(self, service: Service) -> None:
        """Keep a service up, whatever goes wrong with that."""
        while True:
            try:
                await self._keep_up(service)
            except Exception as error:  # nobody would see that this task has ended
                self.say(f"{service.name} is not watched at present ({_words_of(error)})")
                await asyncio.sleep(_LONGEST_PAUSE_S)

    async def _keep_logs_small(self) -> None:
        """Rotate all logs, those of observers too; what goes wrong with one is told once."""
        told: set[str] = set()
        while True:
            await asyncio.sleep(rotation.LOOK_S)
            services = {service.name: service for service in self.services}
            for name in sorted({*services, *self._launcher.logged()}):
                log = self._launcher.log_of(name)
                try:
                    rotated = await asyncio.to_thread(rotation.rotate, log, self.settings.log_bytes)
                    if rotated and name in services:
                        services[name].log_start = 0
                except Exception as error:  # nobody would see that this task has ended
                    if name not in told:
                        self.say(f"the log of {name} goes on growing ({_words_of(error)})")
                    told.add(name)

    async def _keep_up(self, service: Service) -> None:
        """Restart a service whenever it dies, with pauses that grow while it keeps dying."""
        pause, failure = _FIRST_PAUSE_S, ""
        while True:
            assert service.process is not None
            problem = failure or f"died ({await self._cause_of_end(service)})"
            calm = time.monotonic() - service.started_at > _CALM_S
            pause = _FIRST_PAUSE_S if calm else min(2 * pause, _LONGEST_PAUSE_S)
            self.say(f"{service.name} {problem}; restarting it in {pause:.1f} s")
            await asyncio.sleep(pause)
            failure = await self._restart(service)

    async def _cause_of_end(self, service: Service) -> str:
        assert service.process is not None
        returncode = await service.process.wait()
        said = last_message(self._launcher.log_of(service.name), service.log_start)
        return cause_of(returncode, said)

    async def _restart(self, service: Service) -> str:
        """Return what kept it from being started; "" when there is a process again."""
        service.started_at = time.monotonic()
        service.restarts += 1
        try:
            await self._start(service)
        except Exception as error:  # no file descriptor, a full disk: the next try may do
            return f"cannot be started ({_words_of(error)})"
        try:
            with contextlib.suppress(OSError):
                await self._waiting.wait_ready(service)
                self.say(f"{service.name} is back")
        except MeshFailed as failure:  # when it has died, that is seen soon enough
            if service.process is not None and service.process.returncode is None:
                self.say(f"{failure}\nkilling it")
                await _kill(service.process)
        return ""

    async def _stop_all(self, grace_s: float) -> None:
        """Drain in the order of the calls: the gateway first, what it calls afterwards."""
        await _cancel(self._watchers.values())  # first, or one of them starts a service again
        await _cancel([self._rotating] if self._rotating else [])
        await self._stop(self.services[-1:], grace_s)
        await self._stop(self.services[:-1], grace_s)
        await self._launcher.close()
        if self._lock is not None:
            self._lock.close()

    async def _stop(self, services: Sequence[Service], grace_s: float = _STOP_S) -> None:
        begun = [(service.name, service.process) for service in services if service.process]
        running = [(name, process) for name, process in begun if process.returncode is None]
        for _, process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        until = time.monotonic() + grace_s
        for name, process in running:
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    await process.wait()
            except TimeoutError:
                self.say(f"{name} does not stop; killing it")
                await _kill(process)


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


def _words_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _unfailing(tell: Callable[[str], None]) -> Callable[[str], None]:
    """Return what tells somebody who may be gone: a mesh outlives its terminal, and `| head`."""

    def try_to_tell(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: a closed file
            tell(line)

    return try_to_tell


async def _kill(process: Process) -> None:
    """End a process and those that it started: vLLM's hold the memory of a GPU."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def _together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all at once; the first failure ends the others and is raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


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
