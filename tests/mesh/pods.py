"""Pods on loopback: processes at addresses of their own, which gateways find by a name.

A gateway is put into a mount namespace with an /etc/resolv.conf of its own, which needs root.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

from mmesh.local.plan import HEALTH
from mmesh.local.ports import free_port
from mmesh.local.readiness import is_serving
from tests.effort import patient

NEW_S = 5.0
"""Within which a new address is used."""
NAME_SERVER = "127.66.0.53"
ENTER = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'


def may_mount() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
    return done.returncode == 0


def of_release(release: Path | None, folder: Path) -> dict[str, Any]:
    """Return how a process is started that has the packages of another release."""
    if release is None:
        return {}
    return {"env": os.environ | {"PYTHONPATH": str(release)}, "cwd": folder}


class Pods:
    """Processes of services, each on a loopback address of its own, as pods have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {kind: free_port() for kind in HEALTH}
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self.metrics: defaultdict[str, int] = defaultdict(free_port)

    async def start(
        self,
        kind: str,
        host: str,
        *flags: str,
        before: tuple[str, ...] = (),
        module: str | None = None,
        release: Path | None = None,
    ) -> None:
        """Start a pod and wait until it serves.

        Args:
            before: what the command is put behind.
            module: what is run in place of the service's own.
            release: the folder with the packages of another release.
        """
        command = [*before, sys.executable, "-m", module or f"services.{kind}"]
        command += ["--host", host, *flags]
        command += ["--port", str(self.ports[kind]), "--metrics-port", str(self.metrics[host])]
        with (self.folder / f"{kind}-{host}.log").open("wb") as log:
            self._running[host] = await asyncio.create_subprocess_exec(
                *command, stdout=log, stderr=log, **of_release(release, self.folder)
            )
        until = time.monotonic() + patient(60)
        while not await is_serving(f"{host}:{self.ports[kind]}", HEALTH[kind]):
            assert time.monotonic() < until, f"{kind} at {host} does not come up"
            await asyncio.sleep(0.05)

    async def stop(self, host: str) -> None:
        process = self._running.pop(host)
        process.terminate()
        await process.wait()

    async def stop_all(self) -> None:
        await asyncio.gather(*(self.stop(host) for host in list(self._running)))

    def calls(self, host: str, method: str) -> int:
        """Return how many calls of a method a pod has answered."""
        url = f"http://{host}:{self.metrics[host]}/metrics"
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        found = re.findall(rf'mmesh_rpc_seconds_count{{[^}}]*{method}"[^}}]*}} (\S+)', text)
        return int(sum(map(float, found)))

    async def is_used(self, host: str, method: str) -> bool:
        """Tell whether a pod gets calls of a method before it would be too late."""
        before = await asyncio.to_thread(self.calls, host, method)
        until = time.monotonic() + patient(NEW_S)
        while time.monotonic() < until:
            if await asyncio.to_thread(self.calls, host, method) > before:
                return True
            await asyncio.sleep(0.1)
        return False
