"""`mmesh collection create|set|list|show|copy|delete`."""

from __future__ import annotations

import json
from typing import Any

import click

from mmesh.cli.calls.clients import open_client
from mmesh.cli.collection_settings import given, settings_options, settings_rows
from mmesh.cli.options import address_option, json_option
from mmesh.cli.output.rows import collection_row
from mmesh.cli.output.tables import console, table
from mmesh.collections import Collection, CollectionSettings, with_changes
from mmesh.content import Modality

COPY_S = 3600.0
"""Longest time for a copy: some 30 million candidates."""


@click.group()
def collection() -> None:
    """Create, change, list, show, copy and delete collections."""


@collection.command()
@click.argument("name")
@click.option(
    "--model",
    default="",
    metavar="NAME",
    help="Name or fingerprint of its model, one that the mesh serves; by default that of "
    "the first encoder.",
)
@settings_options
@address_option
def create(name: str, model: str, address: str, **settings: Any) -> None:
    """Create the collection NAME; it is no error if it exists, and is left as it is then."""
    chosen = with_changes(CollectionSettings(), given(settings))
    with open_client(address) as client:
        made = client.create_collection(name, chosen, model=model)
    click.echo(f"collection {made.name} for model {made.model_fingerprint}")


@collection.command("set")
@click.argument("name")
@settings_options
@address_option
def set_(name: str, address: str, **settings: Any) -> None:
    """Change settings of the collection NAME; those that are not given stay as they are.

    They hold for later calls and for segments that are built from now on.
    """
    change = given(settings)
    if not change:
        raise click.UsageError("give at least one setting; --help lists them")
    with open_client(address) as client:
        changed = client.update_collection(name, **change)
    console().print(table(["setting", "value"], settings_rows(changed.settings)))


@collection.command("list")
@json_option
@address_option
def list_(as_json: bool, address: str) -> None:
    """List all collections."""
    with open_client(address) as client:
        found = client.list_collections()
    if as_json:
        click.echo(json.dumps([collection_row(one) for one in found]))
    elif found:
        console().print(_collections_table(found))
    else:
        click.echo("There are no collections yet: `mmesh ingest NAME FOLDER` makes one.")


@collection.command()
@click.argument("name")
@json_option
@address_option
def show(name: str, as_json: bool, address: str) -> None:
    """Show the collection NAME with its settings and attributes."""
    with open_client(address) as client:
        found = client.get_collection(name, include_attributes=True)
    if as_json:
        click.echo(json.dumps(collection_row(found)))
        return
    console().print(_collections_table([found]))
    console().print()
    console().print(table(["setting", "value"], settings_rows(found.settings)))
    if found.attributes:
        console().print()
        rows = [
            [one.name, one.type.value if one.type else "", one.count] for one in found.attributes
        ]
        console().print(table(["attribute", "type", "candidates"], rows))


@collection.command()
@click.argument("source")
@click.argument("name")
@address_option
def copy(source: str, name: str, address: str) -> None:
    """Copy what the collection SOURCE holds now into NAME: a read-only snapshot.

    It is searched, and deleted, like any other collection, and takes as much room. Writes to SOURCE
    go on meanwhile.
    """
    with open_client(address) as client:
        made = client.copy_collection(source, name, timeout=COPY_S)
    count = sum(made.candidates.values())
    click.echo(f"collection {made.name}: {count} candidates of {source}, read-only")


@collection.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@address_option
def delete(name: str, yes: bool, address: str) -> None:
    """Delete the collection NAME with all its candidates and aliases."""
    with open_client(address) as client:
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
        aliases = ", ".join(one.aliases)
        rows.append([one.name, aliases, *counts, one.shards, one.model_fingerprint, created])
    return table(["name", "aliases", *names, "shards", "model", "created"], rows)
