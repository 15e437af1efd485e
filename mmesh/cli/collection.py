"""`mmesh collection create|list|show|delete`."""

from __future__ import annotations

import json

import click

from mmesh.candidates import Collection
from mmesh.cli.options import address_option, json_option
from mmesh.cli.rows import collection_row
from mmesh.cli.tables import console, table
from mmesh.client import Client
from mmesh.content import Modality


@click.group()
def collection() -> None:
    """Create, list, show and delete collections."""


@collection.command()
@click.argument("name")
@address_option
def create(name: str, address: str) -> None:
    """Create the collection NAME; it is no error if it exists."""
    with Client(address) as client:
        made = client.create_collection(name)
    click.echo(f"collection {made.name} for model {made.model_fingerprint}")


@collection.command("list")
@json_option
@address_option
def list_(as_json: bool, address: str) -> None:
    """List all collections."""
    with Client(address) as client:
        found = client.list_collections()
    if as_json:
        click.echo(json.dumps([collection_row(one) for one in found]))
    elif found:
        console.print(_collections_table(found))
    else:
        click.echo("There are no collections yet: `mmesh ingest NAME FOLDER` makes one.")


@collection.command()
@click.argument("name")
@json_option
@address_option
def show(name: str, as_json: bool, address: str) -> None:
    """Show the collection NAME."""
    with Client(address) as client:
        found = client.get_collection(name)
    if as_json:
        click.echo(json.dumps(collection_row(found)))
    else:
        console.print(_collections_table([found]))


@collection.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@address_option
def delete(name: str, yes: bool, address: str) -> None:
    """Delete the collection NAME with all its candidates."""
    with Client(address) as client:
        count = sum(client.get_collection(name).candidates.values())
        if not yes and count:
            click.confirm(f"Delete {name} with {count} candidates?", abort=True)
        count = client.delete_collection(name)
    click.echo(f"deleted {name} with {count} candidates")


def _collections_table(found: list[Collection]) -> object:
    names = [modality.value for modality in Modality]
    rows = []
    for one in found:
        counts = [one.candidates[modality] for modality in Modality]
        created = f"{one.create_time:%Y-%m-%d %H:%M}"
        rows.append([one.name, *counts, one.shards, one.model_fingerprint, created])
    return table(["name", *names, "shards", "model", "created"], rows)
