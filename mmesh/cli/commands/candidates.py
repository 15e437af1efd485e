"""`mmesh delete` and `mmesh show`: single candidates by id, and deleting by filter."""

from __future__ import annotations

import click

from mmesh.cli.calls.clients import open_client
from mmesh.cli.options import address_option
from mmesh.cli.output.tables import console, content_preview, table

BATCH = 1000
BY_FILTER_S = 3600.0
"""Seconds that deleting by filter may take."""


@click.command()
@click.argument("collection")
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option("--filter", "expression", metavar="EXPR",
              help="Delete those for which it holds, such as 'year < 1969'.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask before deleting by filter.")
@address_option
def delete(
    collection: str, ids: tuple[str, ...], expression: str | None, yes: bool, address: str
) -> None:
    """Delete candidates from COLLECTION by ID, or by filter; unknown ids are not an error."""
    if bool(ids) == bool(expression):
        raise click.UsageError("give either IDs or --filter")
    if expression:
        _delete_by_filter(collection, expression, yes, address)
        return
    with open_client(address) as client:
        batches = [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
        count = sum(client.delete_candidates(collection, batch)[0] for batch in batches)
    click.echo(f"deleted {count} of {len(ids)}")


def _delete_by_filter(collection: str, expression: str, yes: bool, address: str) -> None:
    from mmesh.filter_language import parse_filter

    condition = parse_filter(expression)
    with open_client(address) as client:
        total = sum(client.get_collection(collection).candidates.values())
        if not yes:
            question = f"Of the {total} candidates of {collection}, delete those with {expression}?"
            click.confirm(question, abort=True)
        count, _ = client.delete_candidates_by_filter(collection, condition, timeout=BY_FILTER_S)
    click.echo(f"deleted {count} of {total}")


@click.command()
@click.argument("collection")
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True,
              help="How many to list when no id is given.")  # fmt: skip
@address_option
def show(collection: str, ids: tuple[str, ...], limit: int, address: str) -> None:
    """Show candidates of COLLECTION: those with ID, or the first ones."""
    with open_client(address) as client:
        if ids:
            found = client.batch_get_candidates(collection, ids[:BATCH])
        else:
            found = list(client.list_candidates(collection, page_size=limit).candidates)
    rows = [
        [c.id, c.content.modality.value, content_preview(c.content), dict(c.attributes)]
        for c in found
    ]
    console().print(table(["id", "modality", "content", "attributes"], rows))
