"""Distributed tracing of calls (OpenTelemetry), when an endpoint is set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import grpc

from mmesh.serving.settings import ServiceSettings

logger = logging.getLogger(__name__)

_trace: Any = None
"""OpenTelemetry's `trace` module once this process is traced."""


def is_tracing() -> bool:
    """Tell whether calls of this process are traced."""
    return _trace is not None


def trace_id() -> str:
    """Return the id of the trace that this call is a part of, as 32 hex digits; "" without one."""
    context = _span_context()
    return f"{context.trace_id:032x}" if context is not None else ""


def exemplar() -> dict[str, str] | None:
    """Return the exemplar of what is measured now, None where no trace of it is kept."""
    context = _span_context()
    if context is None or not context.trace_flags.sampled:
        return None
    return {"trace_id": f"{context.trace_id:032x}"}


def _span_context() -> Any:
    if _trace is None:
        return None
    context = _trace.get_current_span().get_span_context()
    return context if context.is_valid else None


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
    global _trace  # as the provider is
    _trace = trace
    logger.info("tracing", extra={"endpoint": settings.otlp_endpoint})
    return (aio_server_interceptor(),)
