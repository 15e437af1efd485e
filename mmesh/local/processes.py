"""Starts the processes of services: forked from one that has imported them, or by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmesh.local.plan import Process, Service

FORK_SERVER = "mmesh.local.fork_server"


class ForkedProcess:
    """A child of the fork server, watched by its pidfd: ids may be given to others, pidfds not."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._pidfd: int | None = None
        with contextlib.suppress(ProcessLookupError):  # ended already; the report is on its way
            self._pidfd = os.pidfd_open(pid)

    async def wait(self) -> int:
        """Return how it ended, once it has."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int, /) -> None:
        """Send a signal.

        Raises:
            ProcessLookupError: it has ended.
        """
        if self._pidfd is None:
            raise ProcessLookupError(f"process {self.pid} has ended")
        signal.pidfd_send_signal(self._pidfd, number)

    def note_end(self, returncode: int) -> None:
        """Take the report of its end."""
        self.returncode = returncode
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        self._ended.set()

    async def see_end(self) -> None:
        """Wait for its end where nobody is left to report it, and take it for a SIGTERM."""
        if self._pidfd is not None:
            loop, ended = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(self._pidfd, ended.set)
            await ended.wait()
            loop.remove_reader(self._pidfd)
        self.note_end(-signal.SIGTERM)


class CannotFork(Exception):
    """The fork server could not do it; the message says why."""


class ForkServer:
    """This side of the fork server: orders go out, and reports come in."""

    def __init__(self, server: asyncio.subprocess.Process) -> None:
        self._server = server
        self._ids = itertools.count()
        self._orders: dict[int, asyncio.Future[ForkedProcess]] = {}
        self._children: dict[int, ForkedProcess] = {}
        self.is_running = True
        """Whether it takes orders."""
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, environment: Mapping[str, str], log: Path) -> ForkServer:
        """Start a server, which imports nothing before the first order."""
        with log.open("ab") as file:
            server = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", FORK_SERVER),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=file,
                env=environment, start_new_session=True,
            )  # fmt: skip
        return cls(server)

    async def close(self) -> None:
        """End it; a child that is left gets a SIGTERM from the kernel."""
        with contextlib.suppress(ProcessLookupError):
            self._server.kill()
        await self._server.wait()
        await self._reader

    async def fork(self, service: Service, environment: Mapping[str, str], log: Path) -> Process:
        """Return a new process of a service.

        Raises:
            CannotFork: it cannot be forked.
        """
        if not self.is_running or self._server.stdin is None:
            raise CannotFork("the fork server has ended")
        number = next(self._ids)
        order = {
            "id": number, "module": f"{service.module}.__main__", "preload": service.preload,
            "arguments": service.arguments, "environment": dict(environment), "log": str(log),
        }  # fmt: skip
        self._orders[number] = asyncio.get_running_loop().create_future()
        self._server.stdin.write(json.dumps(order).encode() + b"\n")
        return await self._orders[number]

    async def _read(self) -> None:
        """Take reports until there are no more; nothing that was asked stays unanswered."""
        assert self._server.stdout is not None
        try:
            async for line in self._server.stdout:
                self._take(json.loads(line))
        finally:
            self.is_running = False
            for answer in self._orders.values():
                if not answer.done():
                    answer.set_exception(CannotFork("the fork server has ended"))
            await asyncio.gather(*(child.see_end() for child in self._children.values()))

    def _take(self, report: dict[str, Any]) -> None:
        if "returncode" in report:
            self._children.pop(report["pid"]).note_end(report["returncode"])
            return
        answer = self._orders.pop(report["id"])
        if "error" in report:
            if not answer.done():
                answer.set_exception(CannotFork(report["error"]))
            return
        child = self._children[report["pid"]] = ForkedProcess(report["pid"])
        if answer.done():  # cancelled: nobody knows of the child
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
        else:
            answer.set_result(child)


class Launcher:
    """Starts the processes of one mesh, with their logs in `folder`; close it after them."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._server: ForkServer | None = None
        self._starting = asyncio.Lock()

    async def close(self) -> None:
        """End the fork server, if there is one."""
        if self._server is not None:
            await self._server.close()

    def log_of(self, name: str) -> Path:
        """Return the file that a process writes its log to."""
        return self._folder / f"{name}.log"

    async def start(self, service: Service) -> Process:
        """Start a process of a service: a fork where that is right, else an interpreter.

        Raises:
            OSError: the machine does not let it start.
        """
        log = self.log_of(service.name)
        service.log_start = log.stat().st_size if log.is_file() else 0
        if service.forks and sys.platform == "linux":
            try:
                server = await self._running_server()
                return await server.fork(service, _environment(service.environment), log)
            except CannotFork as problem:
                self._say(f"{service.name} is not forked: {problem}")
        return await _spawn(service, log)

    async def _running_server(self) -> ForkServer:
        async with self._starting:
            if self._server is None or not self._server.is_running:
                self._server = await ForkServer.start(_environment({}), self.log_of("fork-server"))
            return self._server


async def _spawn(service: Service, log: Path) -> Process:
    with log.open("ab") as file:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", service.module, *service.arguments),
            stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file,
            env=_environment(service.environment), start_new_session=True,
        )  # fmt: skip


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **own}
