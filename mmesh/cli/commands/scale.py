"""`mmesh scale`: another number of shards and replicas for a running mesh."""

from __future__ import annotations

from pathlib import Path

import click

from mmesh.cli.options import data_option
from mmesh.local import MeshFailed
from mmesh.local.scaling import order_scaling


@click.command()
@click.option(
    "--shards", type=click.IntRange(1, 256), required=True, help="Index shards from now on."
)
@click.option(
    "--replicas",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Index processes that hold each shard.",
)
@data_option
def scale(shards: int, replicas: int, data: Path) -> None:
    """Change the number of shards and replicas of the mesh that `mmesh up` runs on this machine.

    New processes load beside the old ones, which stop when searches go to the new ones. Searches
    and ingests go on all the while. The next `mmesh up` starts with what its own options say.
    """
    try:
        for line in order_scaling(data, shards, replicas):
            click.echo(line)
    except MeshFailed as failure:
        raise click.ClickException(str(failure)) from None
