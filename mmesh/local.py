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
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import grpc

from mmesh.aio import DEFAULT_ADDRESS

DEFAULT_PORT = int(DEFAULT_ADDRESS.rpartition(":")[2])
START_S = 120.0
_LOOK_S = 0.1
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _CALM_S = 0.2, 5.0, 30.0


class MeshFailed(Exception):
    """The mesh could not be started; the message says why."""


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """How to run a local mesh."""

    data: Path = Path(".mmesh")
    """Folder for everything that is kept: log, pictures, and the services' logs."""
    shards: int = 1
    port: int = DEFAULT_PORT
    """Port of the gateway; 0 takes a free one."""
    reranker: str = "maxsim"
    """maxsim, none, or vllm:FOLDER."""
    encoder: str = "lite"
    metrics: bool = True
    """Serve /metrics of every service; `mesh.json` in the data folder says where."""


@dataclass(slots=True)
class Service:
    """One process of the mesh."""

    name: str
    port: int
    health: str
    """Name of its gRPC service, whose health says when it is ready."""
    arguments: Sequence[str]
    metrics: str | None = None
    """Where its /metrics are, if anywhere."""
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    started_at: float = 0.0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        running = self.process is not None and self.process.returncode is None
        return self.process.pid if self.process and running else None


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
        self._watchers: list[asyncio.Task[None]] = []
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
        self._write_description()
        try:
            for service in self.services:
                await self._start(service)
            await asyncio.gather(*(self._wait_ready(service) for service in self.services))
        except BaseException:
            await self._stop_all()
            raise
        self._watchers = [asyncio.create_task(self._watch(service)) for service in self.services]
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

    def _write_description(self) -> None:
        described = {
            service.name: {"address": service.address, "metrics": service.metrics}
            for service in self.services
        }
        description = {"services": described}
        (self.settings.data / "mesh.json").write_text(json.dumps(description, indent=2) + "\n")

    async def _start(self, service: Service) -> None:
        module = service.name.partition("-")[0]
        command = [sys.executable, "-m", f"services.{module}", *service.arguments]
        with (self.settings.data / "logs" / f"{service.name}.log").open("ab") as log:
            service.process = await asyncio.create_subprocess_exec(
                *command, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL,
                env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}, start_new_session=True,
            )  # fmt: skip
        service.started_at = time.monotonic()

    async def _wait_ready(self, service: Service) -> None:
        until = time.monotonic() + START_S
        while not await is_serving(service.address, service.health):
            if service.pid is None:
                raise MeshFailed(
                    f"{service.name} ended while it started: {self._last_words(service)}"
                )
            if time.monotonic() > until:
                raise MeshFailed(f"{service.name} is not ready after {START_S:.0f} s")
            await asyncio.sleep(_LOOK_S)

    def _last_words(self, service: Service) -> str:
        path = self.settings.data / "logs" / f"{service.name}.log"
        lines = path.read_text(errors="replace").strip().splitlines()
        return (lines[-1][:500] if lines else "it said nothing") + f" (see {path})"

    async def _watch(self, service: Service) -> None:
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
                await self._wait_ready(service)
                self.say(f"{service.name} is back")

    async def _stop_all(self) -> None:
        """Drain in the order of the calls: the gateway first, what it calls afterwards."""
        for watcher in self._watchers:  # first, or one of them starts a service again
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
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


def plan_services(settings: LocalSettings) -> list[Service]:
    """Return the services of a mesh in the order in which they start, the gateway last."""
    encoder = _service(settings, "encoder", ["--model", settings.encoder])
    data = ["--data-dir", str(settings.data.resolve()), "--shard-count", str(settings.shards)]
    shards = [
        _service(settings, f"index-{shard}", [*data, "--shard", str(shard)])
        for shard in range(settings.shards)
    ]
    judges = []
    if settings.reranker != "none":
        judges = [_service(settings, "reranker", ["--model", settings.reranker])]
    calls = ["--encoder", encoder.address]
    calls += ["--index", json.dumps([shard.address for shard in shards])]
    calls += ["--reranker", judges[0].address] if judges else []
    return [encoder, *shards, *judges, _service(settings, "gateway", calls, settings.port)]


_HEALTH = {
    "encoder": "mmesh.api.encoder.v1.EncoderService",
    "index": "mmesh.api.index.v1.IndexService",
    "reranker": "mmesh.api.reranker.v1.RerankerService",
    "gateway": "mmesh.api.gateway.v1.RetrievalService",
}


def _service(
    settings: LocalSettings, name: str, arguments: Sequence[str], port: int = 0
) -> Service:
    port, metrics_port = port or free_port(), free_port() if settings.metrics else -1
    common = ["--port", str(port), "--metrics-port", str(metrics_port), "--stop-with-parent"]
    metrics = f"127.0.0.1:{metrics_port}" if settings.metrics else None
    health = _HEALTH[name.partition("-")[0]]
    return Service(name, port, health, [*arguments, *common], metrics)


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
