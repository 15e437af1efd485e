"""Runs a server until it is told to stop, then drains it: the same sequence for every service."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from mmesh.errors import MmeshError
from mmesh.serving import handlers, supervision, telemetry, tracing
from mmesh.serving.parent import stop_with_parent
from mmesh.serving.request_room import RequestRoom
from mmesh.serving.settings import ServiceSettings
from mmesh.serving.supervision import Supervised
from mmesh.serving.trimming import keep_freed, trim, trim_now_and_then
from mmesh.serving.watchdog import LoopWatchdog

logger = logging.getLogger(__name__)

Servicer = TypeVar("Servicer")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
MESSAGES_HELD = 2
"""Requests of the largest size that are held at a time; see `RequestRoom`."""
_STREAM = socket.SOCK_STREAM
ILL_LOOK_S = 0.5
STUCK_S = 5.0
"""Seconds after drain and grace after which an orphan that still runs is taken for stuck."""


def run_service(service: Coroutine[Any, Any, None], settings: ServiceSettings) -> None:
    """Run a service to its end; what keeps it from starting is one line, and exit code 1."""
    if os.getpid() == 1:  # in a container: the kernel would ignore SIGTERM until `Host.run`
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would hide how children end
    if settings.stop_with_parent:
        stop_with_parent(settings.drain_s + settings.grace_s + STUCK_S)
    trim_now_and_then()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(service)
    except MmeshError as error:
        cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
        raise SystemExit(f"{error.message} [{error.reason}]{cause}") from None


def freeze_what_is_here() -> None:
    """Let garbage collections pass over all objects up to now, which live as long as the process.

    Beside torch those are a million: a full collection stands still for 0.2 s, all calls with it.
    """
    gc.collect()
    gc.freeze()


def why_not_listen(host: str, port: int) -> OSError:
    """Return why there can be no server at an address; that it is taken, where nothing else is."""
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, port, type=_STREAM):
            with socket.socket(family, kind) as probe:
                probe.bind(address)
    except OSError as problem:
        return problem
    return OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


@dataclass
class Host:
    """A gRPC server with health, reflection and metrics; `add` services, then `run`."""

    name: str
    settings: ServiceSettings
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """Set as soon as shutdown begins: calls that take long should come to an end."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when no more calls are accepted: those that last for ever must end."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0
    metrics_port: int | None = None
    look_s: float = 1.0
    """Seconds between looks for what nothing announces."""

    def __post_init__(self) -> None:
        """Make the server; it listens from `start` on."""
        limit = self.settings.max_message_bytes
        options = [
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
        if self.settings.max_connection_age_s:  # gRPC spreads it by a tenth
            age_ms = int(1000 * self.settings.max_connection_age_s)
            options.append(("grpc.max_connection_age_ms", age_ms))
        traced = tracing.trace_interceptors(self.name, self.settings)
        self.server = grpc.aio.server(interceptors=traced, options=options)
        self._health = health.aio.HealthServicer()
        room = RequestRoom(MESSAGES_HELD * limit)
        self._guarded = cast(Any, handlers.Guarded(self.server, room))  # has all that adding needs
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._guarded)
        self._services: list[str] = []
        self._wanted: dict[str, bool] = {}
        """What services said of themselves, by name; health says it while all tasks are well."""
        self._is_well = True

    def add(
        self, register: Callable[[Servicer, grpc.aio.Server], None], servicer: Servicer, name: str
    ) -> None:
        """Add a service by its generated function and full name."""
        register(servicer, self._guarded)
        self._services.append(name)

    async def set_serving(self, serving: bool, services: Sequence[str] = ()) -> None:
        """Set the health of `services`, by default of all and of the server as a whole.

        While a supervised task of the process is unwell, all are NOT_SERVING whatever is set.
        """
        self._wanted |= dict.fromkeys(services or ["", *self._services], serving)
        await self._show_health()

    async def _show_health(self) -> None:
        token = self.settings.start_token
        for service, serving in list(self._wanted.items()):
            state = SERVING if serving and self._is_well else NOT_SERVING
            for name in (service, f"{service}@{token}") if token else (service,):
                await self._health.set(name, state)

    def serve_metrics(self) -> None:
        """Let scrapers see a process that will take long to start.

        Raises:
            SystemExit: the port is taken, or the host has no such address.
        """
        try:
            self.metrics_port = telemetry.serve_metrics(self.settings)
        except OSError as error:
            raise self._refusal("metrics_port", error) from None

    async def start(self) -> None:
        """Listen, and serve metrics unless that is done; NOT_SERVING until `set_serving`.

        Raises:
            SystemExit: a port is taken, or the host has no such address.
        """
        names = [*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflecting = reflection.aio.ReflectionServicer(service_names=names)
        add_reflection: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
        add_reflection(reflecting, self._guarded)
        await self.set_serving(False)
        try:
            self.port = self.server.add_insecure_port(self.settings.address_of(self.settings.port))
        except RuntimeError:  # which does not say why
            problem = why_not_listen(self.settings.bare_host, self.settings.port)
            raise self._refusal("port", problem) from None
        if self.metrics_port is None:
            self.serve_metrics()
        await self.server.start()
        extra = {"port": self.port, "metrics_port": self.metrics_port}
        logger.info("listening", extra=extra)

    def _refusal(self, option: str, problem: OSError) -> SystemExit:
        """Return what to say where the port of an option cannot be listened on."""
        address = self.settings.address_of(getattr(self.settings, option))
        is_taken = problem.errno == errno.EADDRINUSE
        why = " is taken" if is_taken else f": {problem.strerror or problem}"
        is_unknown = isinstance(problem, socket.gaierror) or problem.errno == errno.EADDRNOTAVAIL
        other = "host" if is_unknown else option.replace("_", "-")
        return SystemExit(f"mmesh {self.name}: {address}{why}; choose another --{other}")

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `stop`, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        freeze_what_is_here()
        trim()
        keep_freed()
        await self.set_serving(True)
        logger.info("serving", extra={"port": self.port})
        watchdog = LoopWatchdog(self.settings.loop_limit_ms / 1000)
        tasks = Supervised("host", self._keep_looking), Supervised("watchdog", watchdog.run)
        async with aclosing(tasks[0]), aclosing(tasks[1]):
            for task in tasks:
                task.start()
            await self.stop.wait()
        await self.drain()

    async def run_while(self, is_healthy: Callable[[], bool], problem: str) -> None:
        """Serve as `run` does, and no longer than what is served is healthy.

        Raises:
            SystemExit: it is not any more, by `problem`; a supervisor starts the process anew.
        """
        watch = asyncio.create_task(self._stop_when_ill(is_healthy, problem))
        try:
            await self.run()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        if not is_healthy():
            raise SystemExit(problem)

    async def _stop_when_ill(self, is_healthy: Callable[[], bool], problem: str) -> None:
        while is_healthy():  # noqa: ASYNC110  # an engine in other processes sets no event
            await asyncio.sleep(ILL_LOOK_S)
        logger.error(problem)
        await self.set_serving(False)
        self.stop.set()

    async def _keep_looking(self) -> None:
        """Let health follow the tasks of the process."""
        while True:
            await self._look_at_tasks()
            await asyncio.sleep(self.look_s)

    async def _look_at_tasks(self) -> None:
        unwell = supervision.unwell()
        was_well, self._is_well = self._is_well, not unwell
        if was_well != self._is_well:
            logger.warning("health follows tasks", extra={"unwell": unwell})
            await self._show_health()

    async def drain(self) -> None:
        """NOT_SERVING, wait for balancers, stop accepting, finish running calls."""
        logger.info("draining")
        await self._health.enter_graceful_shutdown()
        self.draining.set()
        await asyncio.sleep(self.settings.drain_s)
        self.stopping.set()
        await self.server.stop(self.settings.grace_s)
        logger.info("stopped")
