"""Clients of the mesh for commands: gRPC and protobuf are imported when the first is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mmesh.errors import InvalidField

if TYPE_CHECKING:
    from mmesh.aio import AsyncClient
    from mmesh.client import Client


def default_address() -> str:
    """Return the address that clients take by default."""
    from mmesh import aio

    try:
        return aio.default_address()
    except InvalidField as error:
        raise click.UsageError(error.message) from None


def open_client(address: str) -> Client:
    """Return a blocking client."""
    from mmesh.client import Client

    return Client(address)


def open_async_client(address: str) -> AsyncClient:
    """Return a client for coroutines."""
    from mmesh.aio import AsyncClient

    return AsyncClient(address)
