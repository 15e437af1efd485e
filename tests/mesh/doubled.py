"""A mesh with two processes of each service, as a cluster has, and nobody who mends them."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from mmesh.local.plan import LocalSettings, Service, plan_services
from mmesh.local.ports import free_port
from mmesh.local.processes import Launcher
from mmesh.local.readiness import Waiting
from tests.effort import patient

Flags = Mapping[str, Sequence[str]]


class DoubledMesh:
    """Two processes of each service, and two of each shard; started together.

    Args:
        settings: of the mesh; two encoders and two replicas are what makes pods of it.
        flags: more of them, by kind of service.
    """

    def __init__(self, settings: LocalSettings, flags: Flags | None = None) -> None:
        (settings.data / "logs").mkdir(parents=True)
        *services, gateway = plan_services(replace(settings, port=free_port()))
        judges = [one for one in services if one.kind == "reranker"]
        judges.append(_pod_of(judges[0], 1))
        targets = f"ipv4:{','.join(judge.address for judge in judges)}"
        gateway = _with_value(gateway, "--reranker", targets)
        self.gateways = [gateway, _pod_of(gateway, 1)]
        self.services = [*services, judges[1], *self.gateways]
        for service in self.services:
            service.arguments = [*service.arguments, *(flags or {}).get(service.kind, ())]
        index = [one.address for one in services if one.kind == "index"]
        (settings.data / "index.json").write_text(json.dumps(index))
        self._launcher = Launcher(settings.data / "logs", print)
        self._waiting = Waiting(self._launcher.log_of, patient(60.0))

    @property
    def target(self) -> str:
        """Both gateways, as a headless Service names them."""
        return f"ipv4:{','.join(gateway.address for gateway in self.gateways)}"

    def of(self, kind: str) -> list[Service]:
        return [service for service in self.services if service.kind == kind]

    async def start(self, *services: Service) -> None:
        """Start processes, and return once they serve."""
        await asyncio.gather(*map(self._start, services))

    async def _start(self, service: Service) -> None:
        service.process = await self._launcher.start(service)
        await self._waiting.wait_ready(service)

    async def stop(self, service: Service, number: int = signal.SIGTERM) -> int:
        """End a process by a signal; return how it ended."""
        assert service.process is not None
        if service.process.returncode is None:
            service.process.send_signal(number)
        return await service.process.wait()

    @contextmanager
    def frozen(self, services: Sequence[Service]) -> Iterator[None]:
        """Keep processes from answering without ending them."""
        running = [service.process for service in services if service.process is not None]
        for process in running:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in running:
                process.send_signal(signal.SIGCONT)

    async def __aenter__(self) -> DoubledMesh:
        await self.start(*self.services)
        return self

    async def __aexit__(self, *_: object) -> None:
        running = [service for service in self.services if service.process is not None]
        await asyncio.gather(*map(self.stop, running))
        await self._launcher.close()


def _pod_of(service: Service, number: int) -> Service:
    """Return one more process of a service, on ports of its own."""
    port, name = free_port(), f"{service.kind}-{number}"
    pod = _with_value(service, "--port", str(port))
    if service.metrics is None:
        return replace(pod, name=name, port=port)
    metrics = free_port()
    pod = _with_value(pod, "--metrics-port", str(metrics))
    return replace(pod, name=name, port=port, metrics=f"127.0.0.1:{metrics}")


def _with_value(service: Service, flag: str, value: str) -> Service:
    """Return a service that gets another value of a flag."""
    arguments = list(service.arguments)
    arguments[arguments.index(flag) + 1] = value
    return replace(service, arguments=arguments)
