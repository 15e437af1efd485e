"""`mmesh alias set|delete|list`: other names for collections."""

from __future__ import annotations

import json

import click

from mmesh.cli.calls.clients import open_client
from mmesh.cli.options import address_option, json_option
from mmesh.cli.output.tables import console, table


@click.group()
def alias() -> None:
    """Give collections other names, and switch these from one to the next at once.

    Programs search an alias; when a collection has been filled anew, for another model say, one
    `mmesh alias set` lets them all see it from one search to the next.
    """


@alias.command("set")
@click.argument("alias")
@click.argument("collection")
@address_option
def set_(alias: str, collection: str, address: str) -> None:
    """Let ALIAS name COLLECTION, whatever it named before."""
    with open_client(address) as client:
        previous = client.set_alias(alias, collection)
    before = f", no longer {previous}" if previous not in ("", collection) else ""
    click.echo(f"{alias} is {collection}{before}")


@alias.command()
@click.argument("alias")
@address_option
def delete(alias: str, address: str) -> None:
    """Delete ALIAS; its collection stays."""
    with open_client(address) as client:
        client.delete_alias(alias)
    click.echo(f"deleted alias {alias}")


@alias.command("list")
@json_option
@address_option
def list_(as_json: bool, address: str) -> None:
    """List all aliases."""
    with open_client(address) as client:
        found = client.list_collections()
    named = sorted((alias, one.name) for one in found for alias in one.aliases)
    if as_json:
        click.echo(json.dumps([{"alias": alias, "collection": name} for alias, name in named]))
    elif named:
        console().print(table(["alias", "collection"], named))
    else:
        click.echo("There are no aliases yet: `mmesh alias set ALIAS COLLECTION` makes one.")
