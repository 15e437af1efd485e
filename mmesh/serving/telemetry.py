"""Metrics of every service, on a port of their own (Prometheus)."""

from __future__ import annotations

import json
import platform
from importlib.metadata import Distribution, PackageNotFoundError

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

from mmesh.serving.settings import ServiceSettings

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

rpc_seconds = Histogram(
    "mmesh_rpc_seconds",
    "Seconds of a call, by method and code.",
    ["method", "code"],
    buckets=SECONDS,
)
errors_total = Counter(
    "mmesh_errors_total", "Calls that failed, by method and reason.", ["method", "reason"]
)
task_failures_total = Counter(
    "mmesh_task_failures_total",
    "Times that a background task ended and was restarted, by task and kind of error.",
    ["task", "error"],
)
loop_blocked = Histogram(
    "mmesh_loop_blocked_seconds",
    "Seconds by which a timer of the event loop was late; all calls waited as long.",
    buckets=SECONDS,
)
task_unwell = Gauge(
    "mmesh_task_unwell",
    "Background tasks of a name that fail again and again: the process says NOT_SERVING meanwhile.",
    ["task"],
)

build_info = Gauge(
    "mmesh_build_info",
    "Always 1; its labels say which release and Python run, and of which commit, where pip knows.",
    ["version", "python", "commit"],
)


def serve_metrics(settings: ServiceSettings) -> int | None:
    """Serve /metrics and return the port, or None when it is switched off.

    Scrapers that ask for OpenMetrics get it, with exemplars.
    """
    if settings.metrics_port < 0:
        return None
    build_info.labels(*_build()).set(1)
    server, _ = prometheus_client.start_http_server(settings.metrics_port, settings.bare_host)
    return int(server.server_port)


def _build() -> tuple[str, str, str]:
    """Return version, Python's version and the commit, "" where it was not installed from one."""
    try:
        ours = Distribution.from_name("mmesh")
    except PackageNotFoundError:
        return "", platform.python_version(), ""
    origin = json.loads(ours.read_text("direct_url.json") or "{}")  # PEP 610
    commit = origin.get("vcs_info", {}).get("commit_id", "")
    return ours.version, platform.python_version(), commit
