"""Metrics on a port of their own, and traces when an endpoint is set."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import grpc
import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

from mmesh.serving.settings import ServiceSettings

logger = logging.getLogger(__name__)

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
task_unwell = Gauge(
    "mmesh_task_unwell",
    "Background tasks of a name that fail again and again: the process says NOT_SERVING meanwhile.",
    ["task"],
)


def serve_metrics(settings: ServiceSettings) -> int | None:
    """Serve /metrics and return the port, or None when it is switched off."""
    if settings.metrics_port < 0:
        return None
    server, _ = prometheus_client.start_http_server(settings.metrics_port, settings.host)
    return int(server.server_port)


def is_tracing() -> bool:
    """Tell whether calls of this process are traced."""
    return _tracing


_tracing = False


def trace_interceptors(
    service: str, settings: ServiceSettings
) -> Sequence[grpc.aio.ServerInterceptor]:
    """Set up tracing of this process' servers and return what a server needs for it.

    Raises:
        SystemExit: an endpoint is set and the `tracing` extra is not installed.
    """
    if not settings.otlp_endpoint:
        return ()
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.grpc import (
            GrpcAioInstrumentorClient,
            aio_server_interceptor,
        )
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as missing:
        raise SystemExit(
            f"tracing needs `pip install 'mmesh[tracing]'` ({missing.name} is missing)"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": f"mmesh-{service}"}))
    headers = settings.otlp_headers.get_secret_value() or None
    exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint, headers=headers)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    GrpcAioInstrumentorClient().instrument()
    global _tracing  # as the provider is
    _tracing = True
    logger.info("tracing", extra={"endpoint": settings.otlp_endpoint})
    return (aio_server_interceptor(),)
