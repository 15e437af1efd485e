"""Starts the processes of services: forked from one that has imported them, or by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmesh.local.plan import BRANCHES, TRUNK, Process, Service
from mmesh.local.with_parent import command_with_parent

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


class ForkClient:
    """This side of one branch: orders go out, and reports come in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reports, self._writer = reader, writer
        self._ids = itertools.count()
        self._orders: dict[int, asyncio.Future[ForkedProcess]] = {}
        self._children: dict[int, ForkedProcess] = {}
        self.is_running = True
        """Whether it takes orders."""
        self._reading = asyncio.create_task(self._read())

    async def close(self) -> None:
        """Wait for the ends of its children, when the process behind it has ended."""
        await self._reading
        self._writer.close()

    async def fork(self, service: Service, environment: Mapping[str, str], log: Path) -> Process:
        """Return a new process of a service.

        Raises:
            CannotFork: it cannot be forked.
        """
        if not self.is_running:
            raise CannotFork("the fork server has ended")
        number = next(self._ids)
        order = {
            "id": number,
            "name": service.name,
            "module": f"{service.module}.__main__",
            "preload": service.preload,
            "arguments": service.arguments,
            "environment": dict(environment),
            "log": str(log),
        }
        self._orders[number] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps(order).encode() + b"\n")
        return await self._orders[number]

    async def _read(self) -> None:
        """Take reports until there are no more; nothing that was asked stays unanswered."""
        try:
            with contextlib.suppress(ConnectionError):
                async for line in self._reports:
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


class ForkTree:
    """A process with fork servers as its branches."""

    def __init__(self, trunk: asyncio.subprocess.Process, branches: dict[str, ForkClient]) -> None:
        self.trunk, self.branches = trunk, branches

    @classmethod
    async def plant(
        cls,
        names: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        modules: Sequence[str] = TRUNK,
    ) -> ForkTree:
        """Start one, which imports `modules`; its branches take orders from now on."""
        pairs = {name: socket.socketpair() for name in names}
        theirs = [there.fileno() for _, there in pairs.values()]
        command = [sys.executable, "-P", "-m", FORK_SERVER, json.dumps(modules), *map(str, theirs)]
        with log.open("ab") as file:
            trunk = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,
                pass_fds=theirs,
            )
        for _, there in pairs.values():
            there.close()
        ours = {n: await asyncio.open_connection(sock=here) for n, (here, _) in pairs.items()}
        return cls(trunk, {name: ForkClient(*streams) for name, streams in ours.items()})

    async def fell(self) -> None:
        """End it; a service that is left gets a SIGTERM from the kernel."""
        with contextlib.suppress(ProcessLookupError):
            self.trunk.kill()
        await self.trunk.wait()
        await asyncio.gather(*(branch.close() for branch in self.branches.values()))


class Launcher:
    """Starts the processes of one mesh, with their logs in `folder`; close it after them."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._trees: list[ForkTree] = []
        self._branches: dict[str, ForkClient] = {}
        self._starting = asyncio.Lock()

    async def close(self) -> None:
        """End the fork servers."""
        await asyncio.gather(*(tree.fell() for tree in self._trees))

    def logged(self) -> list[str]:
        """Return the names of all processes that have a log."""
        names = [path.stem for path in self._folder.glob("*.log")]
        return [name for name in names if not name.endswith(".1")]  # those are kept ones

    def log_of(self, name: str) -> Path:
        """Return the file that a process writes its log to."""
        return self._folder / f"{name}.log"

    async def start(self, service: Service) -> Process:
        """Start a process of a service: a fork where that is right, else an interpreter.

        Raises:
            OSError: the machine does not let it start.
        """
        log = self.log_of(service.name)
        environment = _environment({**service.environment, **_new_token(service)})
        service.log_start = log.stat().st_size if log.is_file() else 0
        if service.forks and sys.platform == "linux":
            try:
                branch = await self._running_branch(service.branch)
                return await branch.fork(service, environment, log)
            except CannotFork as problem:
                self._say(f"{service.name} is not forked: {problem}")
        return await _spawn(service, environment, log)

    async def _running_branch(self, name: str) -> ForkClient:
        """Return a branch: of the first tree, or, if that has lost it, of one that has no other."""
        async with self._starting:
            branch = self._branches.get(name)
            if branch is None or not branch.is_running:
                names = [name] if self._trees else BRANCHES
                log = self.log_of("fork-server")
                self._trees.append(await ForkTree.plant(names, _environment({}), log))
                self._branches |= self._trees[-1].branches
            return self._branches[name]


def _new_token(service: Service) -> dict[str, str]:
    """Give a process that is about to start its token, and return the variable that tells it."""
    service.token = secrets.token_hex(16)
    return {f"MMESH_{service.kind.upper()}_START_TOKEN": service.token}


async def _spawn(service: Service, environment: Mapping[str, str], log: Path) -> Process:
    with log.open("ab") as file:
        return await asyncio.create_subprocess_exec(
            *command_with_parent(sys.executable, "-P", "-m", service.module, *service.arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return all variables of a process.

    What libraries start in turn, vLLM among them, does not import from the current folder, either.
    """
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONSAFEPATH": "1", **own}
