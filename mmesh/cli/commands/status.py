"""`mmesh status`: is the mesh well?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from mmesh.cli.clients import open_client
from mmesh.cli.options import address_option, json_option
from mmesh.cli.output.tables import console, table


@click.command()
@json_option
@address_option
def status(as_json: bool, address: str) -> None:
    """Show every service of the mesh; exit code 1 when one does not answer."""
    with open_client(address) as client:
        mesh = client.get_status(timeout=5)
    if as_json:
        click.echo(json.dumps(asdict(mesh)))
    else:
        rows = [
            [s.name, "serving" if s.serving else "NOT SERVING", s.detail] for s in mesh.services
        ]
        console().print(
            table(["service", "state", "detail"], rows, f"mesh {address}, version {mesh.version}")
        )
    if not all(service.serving for service in mesh.services):
        sys.exit(1)
