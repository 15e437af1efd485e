"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from mmesh.cli.calls.clients import default_address

address_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--target-address",
    "address",
    metavar="HOST:PORT",
    default=default_address,
    show_default="MMESH_TARGET_ADDRESS, else the local mesh",
    help="Gateway of the mesh.",
)
json_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead of a table."
)
batch_size_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--batch-size",
    type=click.IntRange(1, 256),
    default=64,
    show_default=True,
    help="Candidates in a batch.",
)
restart_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--restart", is_flag=True, help="Begin at the beginning, whatever was done before."
)
