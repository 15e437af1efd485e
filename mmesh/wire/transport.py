"""Outgoing channels: balanced, kept alive, with retries of idempotent calls."""

from __future__ import annotations

import json

import grpc

REPEATABLE = (
    {"service": "mmesh.api.encoder.v1.EncoderService"},
    {"service": "mmesh.api.gateway.v1.RetrievalService"},
    {"service": "mmesh.api.index.v1.CollectionService"},
    {"service": "mmesh.api.index.v1.IndexService"},
    {"service": "mmesh.api.reranker.v1.RerankerService"},
)
"""Services whose calls are idempotent: they only read, or carry a request id. So whoever opens a
channel must send a `request_id` where there is one."""
UNREPEATED = (
    *(
        {"service": "mmesh.api.index.v1.IndexService", "method": method}
        for method in ("Search", "SearchStream", "GetShard", "CreateSnapshot")
    ),
    {"service": "mmesh.api.gateway.v1.RetrievalService", "method": "Ingest"},
)
"""Calls that go on to another replica instead, that their callers resume, or that do more when they
are repeated."""
_RETRY = {
    "maxAttempts": 3,
    "initialBackoff": "0.05s",
    "maxBackoff": "0.2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def service_config() -> str:
    """Return the gRPC service config: round robin, and retries of idempotent calls."""
    methods = [
        {"name": list(REPEATABLE), "retryPolicy": _RETRY},
        {"name": list(UNREPEATED)},
    ]
    return json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": methods})


def open_channel(target: str, *, max_message_bytes: int = 64 << 20) -> grpc.aio.Channel:
    """Return a channel to `target`: host:port, or a name with several addresses (dns:///...)."""
    options = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.service_config", service_config()),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 250),
        # Or it would wait out the backoff of another channel to the same address.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    return grpc.aio.insecure_channel(target, options=options)
