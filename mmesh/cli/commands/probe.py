"""`mmesh probe`: the gRPC health check of one process, for containers and scripts."""

from __future__ import annotations

import sys
from typing import Any

import click

from mmesh.cli.calls.clients import default_address

_CHECK = "/grpc.health.v1.Health/Check"
_OPTIONS = (("grpc.enable_http_proxy", 0),)
_LONGEST = 127
"""Bytes whose number is one byte of the message."""
_STATES = {b"": "UNKNOWN", b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING"}


@click.command()
@click.argument("address", metavar="[HOST:PORT]", default=default_address)
@click.option(
    "--service",
    default="",
    metavar="NAME",
    help="Full name of a gRPC service.  [default: the process as a whole]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="Seconds to wait.",
)
def probe(address: str, service: str, timeout: float) -> None:
    """Ask the process at HOST:PORT for its health; exit code 1 unless it serves."""
    state = health_of(address, service, timeout)
    click.echo(state)
    sys.exit(state != "SERVING")


def health_of(address: str, service: str, timeout_s: float) -> str:
    """Return SERVING, NOT_SERVING or UNKNOWN, or else why there is no answer."""
    import grpc  # here, so that wrong usage is told without it

    # One message with one string field, spelled out: the SDK does without the health package.
    name = service.encode()
    if len(name) > _LONGEST:
        raise click.BadParameter("is no name of a gRPC service", param_hint="--service")
    with grpc.insecure_channel(address, _OPTIONS) as channel:
        check: Any = channel.unary_unary(_CHECK)
        try:
            reply = check(b"\x0a" + bytes([len(name)]) + name, timeout=timeout_s)
        except grpc.RpcError as problem:
            return f"{problem.code().name}: {problem.details()}"
    return _STATES.get(bytes(reply), "UNKNOWN")
