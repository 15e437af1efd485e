"""Fork server: a process that imports services once and forks one whenever it is told to.

A fork starts without the second that Python needs to import gRPC, numpy, FAISS and the rest, and
shares their memory pages with its siblings. As threads do not survive a fork, this process has
none: it imports modules, but opens no channel, server or model. Orders and reports are lines of
JSON on a socket. It ends with the process that started it, and its children with it.

`python -m mmesh.local.fork_server MODULES SOCKET...` imports modules that all services need, then
has a branch for each socket, a fork of itself, which imports on beside the others. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import selectors
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from mmesh.local.with_parent import die_with
from mmesh.serving.trimming import trim

UNKNOWN_END = 255
"""Exit code of a process whose own is not known; asyncio's, too."""
_PR_SET_NAME = 15


@dataclass(frozen=True, slots=True)
class Order:
    """A service to start."""

    id: int
    name: str
    """By which `top` and `ps -o comm` tell it from its siblings."""
    module: str
    """Its `__main__`, whose `main()` reads `sys.argv`."""
    arguments: list[str]
    environment: dict[str, str] = field(repr=False)
    """All of it; passwords may be in there."""
    log: str
    """File that stdout and stderr are appended to."""
    preload: list[str] = field(default_factory=list)
    """Modules that it imports later, of which its siblings profit."""


class CannotFork(Exception):
    """Starting an interpreter of its own would work, forking does not."""


class ForkServer:
    """Takes orders until a socket ends. `run` returns in every child, with its order."""

    def __init__(self, socket: int, given: set[str], branches: list[int]) -> None:
        self._socket = socket
        self._given = given
        """Variables that it was started with."""
        self._loaded: set[str] = set()
        self._received = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(socket, selectors.EVENT_READ)
        self._children: dict[int, int] = {}
        """Process ids by pidfd."""
        self._branches = branches
        """Those of its children that are fork servers; who talks to them sees that they end."""
        for pid in branches:
            self._watch(pid)

    def run(self) -> Order | None:
        """Fork as ordered and report ends; None when the process that orders is gone."""
        while True:
            for key, _ in self._selector.select():
                if key.fd != self._socket:
                    self._report_end(key.fd)
                    continue
                orders = self._read()
                if orders is None:
                    return None
                for order in orders:
                    if self._carry_out(order):
                        return order

    def _read(self) -> list[Order] | None:
        data = os.read(self._socket, 1 << 16)
        if not data:
            return None
        *lines, self._received = (self._received + data).split(b"\n")
        return [Order(**json.loads(line)) for line in lines]

    def _carry_out(self, order: Order) -> bool:
        """Return whether this is the child now."""
        self._import(order)
        try:
            with _opened(order.log) as log:
                pid = fork()
                if not pid:
                    self._become(order, log)
                    return True
        except (CannotFork, OSError) as problem:
            self._report(id=order.id, error=str(problem))
            return False
        self._watch(pid)
        self._report(id=order.id, pid=pid)
        return False

    def _watch(self, pid: int) -> None:
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        self._selector.register(pidfd, selectors.EVENT_READ)

    def _import(self, order: Order) -> None:
        self._loaded.add(order.module)
        _import_all([order.module, *order.preload])
        trim()  # once, instead of in each that is forked

    def _become(self, order: Order, log: int) -> None:
        """Be like a process that was started by itself."""
        gc.enable()
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_NAME, f"mmesh {order.name}".encode())
        for pidfd in self._children:
            os.close(pidfd)
        self._selector.close()
        os.close(self._socket)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in enumerate((nothing, log, log)):
            os.dup2(source, target)
        os.close(nothing)
        own = {name: value for name, value in os.environ.items() if name not in self._given}
        os.environ.clear()
        os.environ.update(own | order.environment)
        for module in self._loaded - {order.module}:
            _forget_metrics(module.rpartition(".")[0])

    def _report_end(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        try:
            returncode = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except ChildProcessError:  # somebody has waited for it
            returncode = UNKNOWN_END
        if pid not in self._branches:
            self._report(pid=pid, returncode=returncode)

    def _report(self, **fields: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it ends soon, then
            os.write(self._socket, json.dumps(fields).encode() + b"\n")


@contextlib.contextmanager
def _opened(log: str) -> Iterator[int]:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def fork() -> int:
    """Return the id of a new process, which ends with this one, or 0 in that.

    Raises:
        CannotFork: there are threads.
    """
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise CannotFork(f"{threads} threads run, of which a fork would have one")
    gc.freeze()  # a collection in a child would write to every page, and unshare it
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        die_with(parent)
    return pid


def _import_all(modules: list[str]) -> None:
    for module in modules:
        # A service that needs it meets the same error, and says so in its log.
        with contextlib.suppress(Exception):
            import_module(module)


def _forget_metrics(package: str) -> None:
    """Take what another service measures out of what this process exports."""
    metrics = sys.modules.get(f"{package}.metrics")
    if metrics is None:
        return
    from prometheus_client import REGISTRY
    from prometheus_client.metrics import MetricWrapperBase

    for value in vars(metrics).values():
        if isinstance(value, MetricWrapperBase):
            with contextlib.suppress(KeyError):
                REGISTRY.unregister(value)


def _grow(modules: list[str], sockets: list[int]) -> ForkServer:
    """Import what all need, and return the fork server of a branch, in the process of each."""
    given = set(os.environ)
    _import_all(modules)
    trim()
    own, *others = sockets
    branches: list[int] = []
    for number, socket in enumerate(others, start=1):
        if pid := fork():
            branches.append(pid)
            os.close(socket)
            continue
        for other in (own, *others[number:]):
            os.close(other)
        return ForkServer(socket, given, [])
    return ForkServer(own, given, branches)


def main() -> None:
    """Serve orders, or be what was ordered."""
    gc.disable()
    # Who ignores it, as some that start programs do, never learns how children have ended; so do
    # those that it starts.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    order = _grow(json.loads(sys.argv[1]), [int(socket) for socket in sys.argv[2:]]).run()
    if order is None:
        return
    module = import_module(order.module)
    sys.argv = [str(Path(module.__file__ or order.module)), *order.arguments]
    module.main()


if __name__ == "__main__":
    main()
