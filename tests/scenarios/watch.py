"""A real Prometheus and a real Alertmanager that watch a mesh, and the webhook that is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from mmesh.local.observers import scrape_targets
from mmesh.local.plan import Service
from mmesh.local.ports import free_port
from mmesh.testing.guard import Guard
from tests.effort import patient
from tests.scenarios.compression import INTERVAL_S, compressed, write_rules

PROMETHEUS, ALERTMANAGER = shutil.which("prometheus"), shutil.which("prometheus-alertmanager")
MISSING = (
    ""
    if PROMETHEUS and ALERTMANAGER
    else "`apt-get install prometheus prometheus-alertmanager` brings Prometheus and Alertmanager"
)
START_S, LOOK_S = 30.0, 0.05
LOOKBACK_S = 300.0
"""Prometheus' own time after which a value without a successor is stale."""


class Webhook:
    """Receives what Alertmanager sends: which alerts fire, since when, and until when."""

    def __init__(self) -> None:
        self._firing: dict[str, set[str]] = {}
        """Fingerprints of what fires now, by the name of the alert."""
        self.fired: dict[str, float] = {}
        self.resolved: dict[str, float] = {}
        """When each alert first fired and last ended, by the monotonic clock."""
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, name="webhook")
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def firing(self) -> set[str]:
        with self._lock:
            return {name for name, which in self._firing.items() if which}

    def forget(self) -> None:
        """Begin anew with what is sent from now on."""
        with self._lock:
            self.fired.clear()
            self.resolved.clear()

    def _take(self, alerts: Sequence[dict[str, Any]]) -> None:
        with self._lock:
            for alert in alerts:
                name, which = alert["labels"]["alertname"], alert["fingerprint"]
                firing = self._firing.setdefault(name, set())
                if alert["status"] == "firing":
                    firing.add(which)
                    self.fired.setdefault(name, time.monotonic())
                else:
                    firing.discard(which)
                    self.resolved[name] = time.monotonic()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                take(json.loads(body)["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler


class Watch:
    """Prometheus scrapes the processes of a mesh as a cluster's would; a context manager."""

    def __init__(self, folder: Path, services: Sequence[Service]) -> None:
        self._folder, self._services = folder, services
        self._prometheus = f"127.0.0.1:{free_port()}"
        self._alertmanager = f"127.0.0.1:{free_port()}"
        self.webhook = Webhook()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Watch:
        with contextlib.ExitStack() as stack:
            stack.callback(self.webhook.close)
            stack.enter_context(self._running_alertmanager())
            stack.enter_context(self._running_prometheus())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # -- what it sees

    def query(self, expression: str) -> list[float]:
        """Return the values that a query has now; none while Prometheus starts."""
        return [float(one["value"][1]) for one in self._ask(expression)]

    def alerts(self, condition: str) -> set[str]:
        """Return the names of the alerts for which a condition on their labels holds now."""
        return {one["metric"]["alertname"] for one in self._ask(f"ALERTS{{{condition}}}")}

    def _ask(self, expression: str) -> list[dict[str, Any]]:
        asked = urllib.parse.urlencode({"query": expression})
        with contextlib.suppress(OSError):
            url = f"http://{self._prometheus}/api/v1/query?{asked}"
            with urllib.request.urlopen(url, timeout=START_S) as reply:
                found: list[dict[str, Any]] = json.load(reply)["data"]["result"]
                return found
        return []

    async def calm(self, ignored: Collection[str] = ()) -> None:
        """Wait until all processes are seen, and no alert but `ignored` ones fires or may soon."""

        def holds() -> bool:
            is_seen = self.query('count(up{job=~"mmesh-.+"} == 1)') == [len(self._services)]
            known = self.alerts('alertstate=~"firing|pending"') | self.webhook.firing()
            return is_seen and not known - set(ignored)

        await until(holds, self.describe, patient(START_S))

    async def pages_are_decided(self, ignored: Collection[str] = ()) -> None:
        """Wait until no page is about to fire: those that are either do so, or end."""

        def holds() -> bool:
            return not self.alerts('alertstate="pending",severity="page"') - set(ignored)

        await until(holds, self.describe, patient(START_S))

    async def fired(self, name: str, since: float, within_s: float) -> float:
        """Wait for an alert and return how long after `since` it came."""
        left_s = since + within_s - time.monotonic()
        await until(lambda: name in self.webhook.fired, lambda: self._late(name, "fire"), left_s)
        return self.webhook.fired[name] - since

    async def ended(self, name: str, since: float, within_s: float) -> float:
        """Wait for the end of an alert and return how long after `since` it came."""
        left_s = since + within_s - time.monotonic()
        await until(
            lambda: name not in self.webhook.firing(), lambda: self._late(name, "end"), left_s
        )
        return max(0.0, self.webhook.resolved[name] - since)

    def _late(self, name: str, what: str) -> str:
        return f"{name} did not {what}; {self.describe()}"

    def describe(self) -> str:
        """Return what a person would look at first."""
        up = self.query('count(up{job=~"mmesh-.+"} == 1)')
        states = {state: self.alerts(f'alertstate="{state}"') for state in ("pending", "firing")}
        return f"{up} of {len(self._services)} are seen; {states}; told: {self.webhook.fired}"

    # -- its processes

    def _running_prometheus(self) -> contextlib.AbstractContextManager[None]:
        interval = f"{round(INTERVAL_S * 1000)}ms"
        config = {
            "global": {
                "scrape_interval": interval,
                "scrape_timeout": interval,
                "evaluation_interval": interval,
            },
            "rule_files": [str(path) for path in write_rules(self._folder)],
            "alerting": {
                "alertmanagers": [{"static_configs": [{"targets": [self._alertmanager]}]}]
            },
            "scrape_configs": [
                {"job_name": "mmesh", "static_configs": scrape_targets(self._services)}
            ],
        }
        (self._folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        return self._running(
            "prometheus",
            PROMETHEUS,
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'prometheus'}",
            f"--web.listen-address={self._prometheus}",
            f"--query.lookback-delta={compressed(LOOKBACK_S)}",
        )

    def _running_alertmanager(self) -> contextlib.AbstractContextManager[None]:
        route = {
            "receiver": "test",
            "group_by": ["..."],
            "group_wait": "0s",
            "group_interval": "100ms",
            "repeat_interval": "1h",
        }
        receiver = {"name": "test", "webhook_configs": [{"url": self.webhook.url}]}
        config = {"route": route, "receivers": [receiver]}
        (self._folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
        return self._running(
            "alertmanager",
            ALERTMANAGER,
            f"--config.file={self._folder / 'alertmanager.yml'}",
            f"--storage.path={self._folder / 'alertmanager'}",
            f"--web.listen-address={self._alertmanager}",
            "--cluster.listen-address=",
        )

    @contextlib.contextmanager
    def _running(self, name: str, program: str | None, *flags: str) -> Iterator[None]:
        assert program is not None, MISSING
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen([program, *flags], stdout=log, stderr=log)
        guard = Guard(process.pid, 9)
        try:
            yield
        finally:
            process.kill()
            process.wait()
            guard.close()


async def until(holds: Callable[[], bool], describe: Callable[[], str], within_s: float) -> None:
    """Look, beside the loop, until something holds; fail the test when that takes too long."""
    limit = time.monotonic() + within_s
    while not await asyncio.to_thread(holds):
        if time.monotonic() > limit:
            raise AssertionError(f"not within {within_s:.0f} s: {describe()}")
        await asyncio.sleep(LOOK_S)
