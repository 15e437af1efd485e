"""Readiness: waits until services serve, for as long as they make progress."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmesh.local.plan import MeshFailed, Service

if TYPE_CHECKING:
    import grpc

    from mmesh.mesh_status import MeshStatus

LOOK_S, ASK_S = 0.02, 2.0
"""Between two questions, and how long one waits for an answer, or for somebody who listens."""
_SAMPLE_S = 0.5
"""Between two looks at log and CPU time."""
LEAST_CPU_S = 0.05
"""CPU seconds, about a sample apart, that are progress: threads that only wait take less."""
_LAST_LINES, _LINE_LENGTH, _TAIL_BYTES = 10, 300, 16_384
_CHANNEL = [
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 50),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(slots=True)
class StartProgress:
    """Signs of life of a service that starts: its log grows, or its processes compute."""

    service: Service
    log: Path
    began_at: float = field(default_factory=time.monotonic)
    _seen_at: float = field(default_factory=time.monotonic, init=False)
    _sampled_at: float = field(default=0.0, init=False)
    _size: int = field(default=-1, init=False)
    _cpu_s: float = field(default=0.0, init=False)

    def idle_s(self) -> float:
        """Return the seconds since the last sign."""
        now = time.monotonic()
        if now - self._sampled_at >= _SAMPLE_S:
            self._sampled_at = now
            self._sample(now)
        return now - self._seen_at

    def _sample(self, now: float) -> None:
        size = self.log.stat().st_size if self.log.exists() else 0
        cpu_s = cpu_seconds(self.service.pid) if self.service.pid else 0.0
        if size != self._size or abs(cpu_s - self._cpu_s) >= LEAST_CPU_S:
            self._seen_at = now
        self._size, self._cpu_s = size, cpu_s

    def describe(self) -> str:
        """Return name, seconds, and what the log says last."""
        seconds = time.monotonic() - self.began_at
        said = last_message(self.log, self.service.log_start)
        return f"{self.service.name} ({seconds:.0f} s{f': {said}' if said else ''})"


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and all that it started; 0 where /proc does not tell."""
    with contextlib.suppress(OSError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        own = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        threads = Path(f"/proc/{pid}/task").glob("*/children")
        children = [int(child) for thread in threads for child in thread.read_text().split()]
        return own + sum(map(cpu_seconds, children))
    return 0.0


def last_message(log: Path, start: int = 0) -> str:
    """Return the last line of a log from a place on, the message alone where it is JSON."""
    lines = last_lines(log, start)
    if not lines:
        return ""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(lines[-1])["message"])
    return lines[-1]


def last_lines(log: Path, start: int = 0) -> list[str]:
    """Return the last lines of a log from a place on, the long ones cut."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line[:_LINE_LENGTH] for line in text.strip().splitlines()[-_LAST_LINES:]]


def cause_of(returncode: int, said: str = "") -> str:
    """Return how a process ended, in words, and what it said last if it ended by itself."""
    if returncode >= 0:
        return f"exit code {returncode}{f': {said}' if returncode and said else ''}"
    number = -returncode
    known = number in set(signal.Signals)  # of the real-time signals two have names
    return f"signal {signal.Signals(number).name if known else number}"


class Waiting:
    """The services that are waited for at present."""

    def __init__(self, log_of: Callable[[str], Path], timeout_s: float) -> None:
        self._log_of, self._timeout_s = log_of, timeout_s
        self._awaited: list[StartProgress] = []

    def describe(self) -> str:
        """Return who is waited for, for how long, and what they say; "" when there is nobody."""
        return ", ".join(progress.describe() for progress in self._awaited)

    async def wait_ready(self, service: Service) -> None:
        """Return once a service serves.

        Raises:
            MeshFailed: it ended, or shows no progress; with the last lines of its log.
        """
        progress = StartProgress(service, self._log_of(service.name))
        self._awaited.append(progress)
        try:
            await self._wait(progress)
        finally:
            self._awaited.remove(progress)

    async def _wait(self, progress: StartProgress) -> None:
        service = progress.service
        assert service.process is not None
        ended = asyncio.create_task(service.process.wait())
        try:
            async with open_channel(service.address) as channel:
                while not await _first(_serves(channel, service.own_health, waits=True), ended):
                    if ended.done():
                        raise MeshFailed(f"{service.name} ended while it started{_words(progress)}")
                    if progress.idle_s() > self._timeout_s:
                        problem = f"no progress for {self._timeout_s:.0f} s"
                        raise MeshFailed(
                            f"{service.name} does not start: {problem}{_words(progress)}"
                        )
                    await asyncio.sleep(LOOK_S)
        finally:
            ended.cancel()


async def _first(question: Coroutine[Any, Any, bool], ended: asyncio.Task[int]) -> bool:
    """Return the answer, or False as soon as nobody is left to give one."""
    asking = asyncio.create_task(question)
    try:
        await asyncio.wait({asking, ended}, return_when=asyncio.FIRST_COMPLETED)
        return asking.done() and asking.result()
    finally:
        asking.cancel()


def _words(progress: StartProgress) -> str:
    process = progress.service.process
    ended = process.returncode if process else None
    cause = "" if ended is None else f" ({cause_of(ended)})"
    lines = last_lines(progress.log, progress.service.log_start)
    if not lines:
        return f"{cause}; it said nothing"
    return "\n  ".join([f"{cause}; the end of {progress.log}:", *lines])


def open_channel(address: str) -> grpc.aio.Channel:
    """Return a channel to a process that may not listen yet."""
    import grpc  # here, so that the first process is ordered before this takes its time

    return grpc.aio.insecure_channel(address, _CHANNEL)


async def _serves(channel: grpc.aio.Channel, service: str, *, waits: bool = False) -> bool:
    import grpc

    # One message with one string field, spelled out: the SDK does without the health package.
    request = b"\x0a" + bytes([len(service)]) + service.encode()
    check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
    try:
        reply = await check(request, timeout=ASK_S, wait_for_ready=waits)
        return bool(reply == b"\x08\x01")
    except grpc.aio.AioRpcError:
        return False


async def is_serving(address: str, service: str) -> bool:
    """Ask a server's health service whether `service` is ready."""
    async with open_channel(address) as channel:
        return await _serves(channel, service)


async def status_of(channel: grpc.aio.Channel) -> MeshStatus:
    """Return the state of the mesh as its gateway sees it; of none if it does not answer."""
    import grpc

    from mmesh.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
    from mmesh.mesh_status import MeshStatus
    from mmesh.wire.status import status_from_pb

    stub = gateway_pb2_grpc.RetrievalServiceStub(channel)
    try:
        return status_from_pb(await stub.GetStatus(gateway_pb2.GetStatusRequest(), timeout=5.0))
    except grpc.aio.AioRpcError:
        return MeshStatus((), "", 0)
