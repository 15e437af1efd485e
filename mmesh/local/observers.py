"""Prometheus and Alertmanager beside a local mesh, with the rules that a cluster has.

Everything of theirs is in the folder `observe` of the mesh's data, and they listen on loopback.
Targets are found in a file (file service discovery), which the mesh writes whenever it starts or
stops a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from mmesh.local.plan import MeshFailed, Service
from mmesh.local.ports import free_port
from mmesh.local.with_parent import command_with_parent

TARGETS = "prometheus-targets.json"
"""File in the data folder that says where metrics are."""
ADDRESSES = "observe/addresses.json"
"""File in the data folder that says where the programs are, by name, while they run."""
HOW_TO_INSTALL = "`apt-get install prometheus prometheus-alertmanager`, or prometheus.io/download"
_PROMETHEUS, _ALERTMANAGER = ("prometheus",), ("prometheus-alertmanager", "alertmanager")
"""What the programs are called, by Debian first."""
_READY_S, _LOOK_S, _STOP_S = 20.0, 0.1, 10.0


def scrape_targets(services: Sequence[Service]) -> list[dict[str, Any]]:
    """Return where metrics are, with the labels that pods of a cluster have."""
    targets = []
    for service in services:
        if service.metrics is not None:
            labels = {"job": f"mmesh-{service.kind}", "namespace": "local", "pod": service.name}
            if service.shard_count:
                labels |= {"shard": str(service.shard), "shard_count": str(service.shard_count)}
            targets.append({"targets": [service.metrics], "labels": labels})
    return targets


def rules_folder() -> Path:
    """Return the folder of recording and alert rules: of the package, or of the checkout."""
    package = Path(__file__).parents[1]
    packed = package / "local" / "rules"
    return packed if packed.is_dir() else package.parent / "k8s/components/monitoring/rules"


@dataclass
class Observers:
    """The two programs as far as they are installed; an async context manager that ends them.

    `say` gets a line for each: its address, or why it does not run.
    """

    data: Path
    say: Callable[[str], None]
    scrape_s: float = 5.0
    """Seconds between scrapes, and between evaluations of rules."""
    addresses: dict[str, str] = field(default_factory=dict, init=False)
    """URLs by program."""
    _running: list[asyncio.subprocess.Process] = field(default_factory=list, init=False)
    _watchers: list[asyncio.Task[None]] = field(default_factory=list, init=False)

    async def __aenter__(self) -> Self:
        """Start what is installed; return when it answers.

        Raises:
            MeshFailed: its files cannot be written.
        """
        try:
            await self._start_all()
        except BaseException as failure:
            await self._stop_all()
            if isinstance(failure, OSError):  # a full disk
                raise MeshFailed(str(failure)) from failure
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop_all()

    @property
    def folder(self) -> Path:
        """Where they keep what they keep."""
        return self.data.resolve() / "observe"

    async def _start_all(self) -> None:
        prometheus, alertmanager = _installed(_PROMETHEUS), _installed(_ALERTMANAGER)
        if prometheus is None:
            self.say(f"prometheus is not installed, so nothing is observed: {HOW_TO_INSTALL}")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        notified = []
        if alertmanager is None:
            self.say(f"alertmanager is not installed, so alerts tell nobody: {HOW_TO_INSTALL}")
        else:
            notified = [f"127.0.0.1:{await self._start_alertmanager(alertmanager)}"]
        await self._start_prometheus(prometheus, notified)
        (self.data / ADDRESSES).write_text(json.dumps(self.addresses) + "\n")

    async def _start_alertmanager(self, program: str) -> int:
        config = self.folder / "alertmanager.yml"
        if not config.exists():  # people add receivers to it
            nobody = {"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]}
            config.write_text(json.dumps(nobody, indent=2) + "\n")
        return await self._start(
            "alertmanager",
            program,
            f"--config.file={config}",
            f"--storage.path={self.folder / 'alertmanager'}",
            "--cluster.listen-address=",
        )

    async def _start_prometheus(self, program: str, notified: Sequence[str]) -> None:
        config = self.folder / "prometheus.yml"
        config.write_text(json.dumps(self._prometheus_config(notified), indent=2) + "\n")
        await self._start(
            "prometheus",
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={self.folder / 'prometheus'}",
            "--enable-feature=exemplar-storage",
        )

    def _prometheus_config(self, notified: Sequence[str]) -> dict[str, Any]:
        often = f"{round(1000 * self.scrape_s)}ms"
        found = {"files": [str(self.data.resolve() / TARGETS)], "refresh_interval": "10s"}
        return {
            "global": {
                "scrape_interval": often,
                "evaluation_interval": often,
                "scrape_timeout": often,
            },
            "rule_files": [str(rules_folder() / "*.yaml")],
            "scrape_configs": [{"job_name": "mmesh", "file_sd_configs": [found]}],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": list(notified)}]}]},
        }

    async def _start(self, name: str, program: str, *flags: str) -> int:
        """Start a program on a free port, and return that when it answers, or has ended."""
        port, log = free_port(), self.data.resolve() / "logs" / f"{name}.log"
        command = command_with_parent(program, *flags, f"--web.listen-address=127.0.0.1:{port}")
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._running.append(process)
        url = f"http://127.0.0.1:{port}"
        if await _answers(url, process):
            self.addresses[name] = url
            self.say(f"{name} {url}")
        self._watchers.append(asyncio.create_task(self._tell_end(name, process, log)))
        return port

    async def _tell_end(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        code = await process.wait()
        self.say(f"{name} ended (exit code {code}); the mesh goes on without it, see {log}")

    async def _stop_all(self) -> None:
        (self.data / ADDRESSES).unlink(missing_ok=True)
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await asyncio.gather(*map(_stop, self._running))


def _installed(names: Sequence[str]) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


async def _answers(url: str, process: asyncio.subprocess.Process) -> bool:
    """Wait until a program is ready; False when it ends instead, or takes too long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_READY_S):
            while process.returncode is None:
                if await asyncio.to_thread(_is_ready, url):
                    return True
                await asyncio.sleep(_LOOK_S)
    return False


def _is_ready(url: str) -> bool:
    from urllib.request import ProxyHandler, build_opener  # what only plans a mesh needs none

    try:
        with build_opener(ProxyHandler({})).open(f"{url}/-/ready", timeout=2):
            return True
    except OSError:
        return False


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
