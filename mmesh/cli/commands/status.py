"""`mmesh status`: is the mesh well?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from mmesh.cli.calls.clients import open_client
from mmesh.cli.options import address_option, json_option
from mmesh.cli.output.tables import console, table
from mmesh.mesh_status import ServiceStatus


@click.command()
@json_option
@address_option
def status(as_json: bool, address: str) -> None:
    """Show every process of the mesh; exit code 1 when one cannot be used."""
    with open_client(address) as client:
        mesh = client.get_status(timeout=5)
    if as_json:
        click.echo(json.dumps(asdict(mesh), default=lambda member: member.value))
    else:
        columns = ["service", "shard", "replica", "state", "address", "detail"]
        title = f"mesh {address}, version {mesh.version}, {_shards(mesh.shard_count)}"
        console().print(table(columns, map(_row, mesh.services), title))
    if not mesh.is_serving:
        sys.exit(1)


def _row(one: ServiceStatus) -> list[str]:
    place = [f"{one.shard}/{one.shard_count}", str(one.replica)] if one.shard_count else ["", ""]
    state = one.state.value if one.is_serving else one.state.value.upper()
    return [one.role.value, *place, state, one.address, one.detail]


def _shards(count: int) -> str:
    return f"{count} shard{'s' * (count != 1)}"
