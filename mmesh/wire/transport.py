"""Outgoing channels: balanced, kept alive, with retries of idempotent calls; not across forks.

gRPC does not survive a fork: its threads end in the child, and locks that they held stay locked. A
call would hang there whatever its timeout, also on a channel that the child opens, and to free a
channel would crash the process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import weakref

import grpc

from mmesh.errors import FailedPrecondition, InvalidField

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
    # CANCELLED by a server that shuts down; a call that its caller cancels is never repeated.
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}
_METADATA_BYTES = 1 << 20
"""More than what a call has beside its message."""
_SCHEMES = ("dns:", "unix:", "unix-abstract:", "vsock:", "ipv4:", "ipv6:", "xds:")
_FORKED = (
    "this process was forked from one that uses mmesh, and gRPC does not survive a fork: make the "
    "first call after it, or start processes by the methods 'spawn' or 'forkserver'"
)
_channels: weakref.WeakSet[grpc.aio.Channel] = weakref.WeakSet()
_opened_by: set[int] = set()
"""Ids of this process and those before it that have opened a channel."""


def check_not_forked() -> None:
    """Raise unless this process can use channels.

    Raises:
        FailedPrecondition: it was forked from a process that has opened one.
    """
    if _opened_by - {os.getpid()}:
        raise FailedPrecondition(_FORKED)


def closed() -> FailedPrecondition:
    """Return what calls of a closed client end with."""
    return FailedPrecondition("the client is closed; make another one")


def check_not_cut_off() -> None:
    """Raise when the close of its channel ended a call, and nobody cancelled the task in it.

    gRPC raises `asyncio.CancelledError` for both; a task that lets it through ends without a word.

    Raises:
        FailedPrecondition: the client was closed meanwhile.
    """
    task = asyncio.current_task()
    if task is not None and not task.cancelling():
        raise closed() from None


class _Keeping:
    """Keeps what a child inherits of gRPC from being freed in it, for as long as it lives."""

    def __init__(self) -> None:
        self._collects = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._pause, after_in_parent=self._go_on, after_in_child=self._keep
            )

    def _pause(self) -> None:
        """Let no garbage collection happen before the child can tell what it must not free."""
        import ctypes  # noqa: F401  # the child needs it, and should import nothing

        self._collects = gc.isenabled()
        gc.disable()

    def _go_on(self) -> None:
        if self._collects:
            gc.enable()

    def _keep(self) -> None:
        if _opened_by:
            gc.freeze()  # calls, mostly, that have ended or were under way
        import ctypes

        for channel in _channels:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(channel))
        self._go_on()


_Keeping()


def check_target(target: str, field: str = "address") -> None:
    """Raise `InvalidField` unless `target` is host:port, or begins with a scheme of gRPC's.

    gRPC itself takes a port to be 443 where there is none, and http:// to be a host.
    """
    if target.startswith(_SCHEMES):
        return
    host, _, port = target.rpartition(":")
    is_name = "://" not in target and host and (":" not in host or host.startswith("["))
    if not (is_name and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise InvalidField(field, f"is {target[:80]!r}; HOST:PORT is due, such as 127.0.0.1:50550")


def service_config() -> str:
    """Return the gRPC service config: round robin, and retries of idempotent calls."""
    methods = [
        {"name": list(REPEATABLE), "retryPolicy": _RETRY},
        {"name": list(UNREPEATED)},
    ]
    return json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": methods})


def open_channel(target: str, *, max_message_bytes: int = 64 << 20) -> grpc.aio.Channel:
    """Return a channel to `target`: host:port, or a name with several addresses (dns:///...).

    Raises:
        FailedPrecondition: see `check_not_forked`.
    """
    check_not_forked()
    _opened_by.add(os.getpid())
    options = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.service_config", service_config()),
        # Or calls above 256 KiB, which most pictures are, would not be made again.
        ("grpc.per_rpc_retry_buffer_size", max_message_bytes + _METADATA_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 250),
        # Or it would wait out the backoff of another channel to the same address.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    channel = grpc.aio.insecure_channel(target, options=options)
    _channels.add(channel)
    return channel
