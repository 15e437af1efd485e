"""Outgoing channels: balanced, kept alive, with retries of calls that may be repeated."""

from __future__ import annotations

import json

import grpc

REPEATABLE = (
    {"service": "mmesh.api.encoder.v1.EncoderService"},
    {"service": "mmesh.api.reranker.v1.RerankerService"},
    {"service": "mmesh.api.index.v1.IndexService"},
    {"service": "mmesh.api.index.v1.CollectionService"},
    *(
        {"service": "mmesh.api.gateway.v1.RetrievalService", "method": method}
        for method in ("Search", "SearchBatch", "BatchGetCandidates", "ListCandidates")
    ),
    *(
        {"service": "mmesh.api.gateway.v1.RetrievalService", "method": method}
        for method in ("CreateCollection", "GetCollection", "ListCollections", "GetStatus")
    ),
)
"""Calls that do no harm when repeated (the gateway's writes to the index carry a request id)."""
UNREPEATED = tuple(
    {"service": "mmesh.api.index.v1.IndexService", "method": method}
    for method in ("Search", "SearchStream", "GetShard")
)
"""Calls that go on to another replica instead, or to nobody."""
_RETRY = {
    "maxAttempts": 3,
    "initialBackoff": "0.05s",
    "maxBackoff": "0.2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def service_config() -> str:
    """Return the gRPC service config: round robin, and retries of what may be repeated."""
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
