"""`mmesh delete` and `mmesh show`: single candidates by id."""

from __future__ import annotations

import click

from mmesh.cli.options import address_option
from mmesh.cli.tables import console, content_preview, table
from mmesh.client import Client

BATCH = 1000


@click.command()
@click.argument("collection")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@address_option
def delete(collection: str, ids: tuple[str, ...], address: str) -> None:
    """Delete candidates from COLLECTION by ID; unknown ids are not an error."""
    with Client(address) as client:
        batches = [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
        count = sum(client.delete_candidates(collection, batch)[0] for batch in batches)
    click.echo(f"deleted {count} of {len(ids)}")


@click.command()
@click.argument("collection")
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True,
              help="How many to list when no id is given.")  # fmt: skip
@address_option
def show(collection: str, ids: tuple[str, ...], limit: int, address: str) -> None:
    """Show candidates of COLLECTION: those with ID, or the first ones."""
    with Client(address) as client:
        if ids:
            found = client.batch_get_candidates(collection, ids[:BATCH])
        else:
            found = list(client.list_candidates(collection, page_size=limit).candidates)
    rows = [
        [c.id, c.content.modality.value, content_preview(c.content), dict(c.attributes)]
        for c in found
    ]
    console.print(table(["id", "modality", "content", "attributes"], rows))
