"""Runs a server until it is told to stop, then drains it: the same sequence for every service."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mmesh.errors import MmeshError
from mmesh.serving import interceptors, supervision, telemetry
from mmesh.serving.settings import ServiceSettings
from mmesh.serving.supervision import Supervised

logger = logging.getLogger(__name__)

Servicer = TypeVar("Servicer")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def run_service(service: Coroutine[Any, Any, None]) -> None:
    """Run a service to its end; what keeps it from starting is one line, and exit code 1."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(service)
    except MmeshError as error:
        raise SystemExit(f"{error.message} [{error.reason}]") from None


def freeze_what_is_here() -> None:
    """Let garbage collections pass over all objects up to now, which live as long as the process.

    Beside torch those are a million: a full collection stands still for 0.2 s, all calls with it.
    """
    gc.collect()
    gc.freeze()


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
        tracing = telemetry.trace_interceptors(self.name, self.settings)
        self.server = grpc.aio.server(interceptors=tracing, options=options)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        self._services: list[str] = []
        self._wanted: dict[str, bool] = {}
        """What services said of themselves, by name; health says it while all tasks are well."""
        self._is_well = True
        self._parent = os.getppid()

    def add(
        self, register: Callable[[Servicer, grpc.aio.Server], None], servicer: Servicer, name: str
    ) -> None:
        """Add a service by its generated function and full name."""
        register(servicer, interceptors.Guarded(self.server))  # type: ignore[arg-type]  # all it needs
        self._services.append(name)

    async def set_serving(self, serving: bool, services: Sequence[str] = ()) -> None:
        """Set the health of `services`, by default of all and of the server as a whole.

        While a supervised task of the process is unwell, all are NOT_SERVING whatever is set.
        """
        self._wanted |= dict.fromkeys(services or ["", *self._services], serving)
        await self._show_health()

    async def _show_health(self) -> None:
        for service, serving in list(self._wanted.items()):
            await self._health.set(service, SERVING if serving and self._is_well else NOT_SERVING)

    async def start(self) -> None:
        """Listen; health says NOT_SERVING until `set_serving`.

        Raises:
            SystemExit: a port is taken.
        """
        names = [*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self.server)
        await self.set_serving(False)
        address = f"{self.settings.host}:{self.settings.port}"
        try:
            self.port = self.server.add_insecure_port(address)
        except RuntimeError:
            raise SystemExit(
                f"mmesh {self.name}: {address} is taken; choose another --port"
            ) from None
        self.metrics_port = self._serve_metrics()
        await self.server.start()
        extra = {"port": self.port, "metrics_port": self.metrics_port}
        logger.info("listening", extra=extra)

    def _serve_metrics(self) -> int | None:
        try:
            return telemetry.serve_metrics(self.settings)
        except OSError as error:
            address = f"{self.settings.host}:{self.settings.metrics_port}"
            problem = f"{address}: {error.strerror}; choose another --metrics-port"
            raise SystemExit(f"mmesh {self.name}: {problem}") from None

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `stop`, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        freeze_what_is_here()
        await self.set_serving(True)
        logger.info("serving", extra={"port": self.port})
        async with aclosing(Supervised("host", self._keep_looking)) as looking:
            looking.start()
            await self.stop.wait()
        await self.drain()

    async def _keep_looking(self) -> None:
        """Stop when orphaned, and let health follow the tasks of the process."""
        while True:
            if self.settings.stop_with_parent and os.getppid() != self._parent:
                self.stop.set()
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
