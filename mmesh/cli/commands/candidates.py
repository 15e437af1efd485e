"""`mmesh delete` and `mmesh show`: single candidates by id, and deleting by filter."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import islice

import click

from mmesh.cli.calls.clients import open_client
from mmesh.cli.options import address_option
from mmesh.cli.output.rows import attributes_row
from mmesh.cli.output.tables import console, content_preview, table
from mmesh.values.spelling import nearest

BATCH, SHOWN = 1000, 10
BY_FILTER_S = 3600.0
"""Seconds that deleting by filter may take."""


class _WithIds(click.Command):
    """A command that takes ids, also those that begin with a dash."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Tell options by their names; whatever else has a single dash is an id."""
        options = {
            name: one
            for one in self.get_params(ctx)
            if isinstance(one, click.Option)
            for name in one.opts
        }
        chosen: list[str] = []
        plain: list[str] = []
        rest = iter(args)
        for one in rest:
            if one == "--":
                plain += rest
            elif one.partition("=")[0] in options:
                chosen.append(one)
                takes_value = not options[one.partition("=")[0]].is_flag and "=" not in one
                value = list(islice(rest, 1)) if takes_value else []
                if takes_value and not value:
                    raise click.BadOptionUsage(one, f"Option {one!r} requires an argument.", ctx)
                chosen += value
            else:
                (chosen if one.startswith("--") else plain).append(one)
        return super().parse_args(ctx, [*chosen, "--", *plain])


@click.command(cls=_WithIds)
@click.argument("collection")
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option(
    "--filter",
    "expression",
    metavar="EXPR",
    help="Delete those for which it holds, such as 'year < 1969'.",
)
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
    from mmesh.filters import attributes_in

    condition = parse_filter(expression)
    with open_client(address) as client:
        found = client.get_collection(collection, include_attributes=True)
        total = sum(found.candidates.values())
        _warn_of_unknown(attributes_in(condition), [one.name for one in found.attributes])
        if not yes:
            question = f"Of the {total} candidates of {collection}, delete those with {expression}?"
            click.confirm(question, abort=True)
        count, _ = client.delete_candidates_by_filter(collection, condition, timeout=BY_FILTER_S)
    click.echo(f"deleted {count} of {total}")


def _warn_of_unknown(named: Iterable[str], known: Sequence[str]) -> None:
    """Say which attributes of a filter no candidate has: `not` of a misspelt one is true of all."""
    for name in dict.fromkeys(named):
        if name not in known:
            meant = nearest(name, known)
            hint = f"; did you mean {meant!r}?" if meant else ""
            click.echo(f"warning: no candidate has the attribute {name!r}{hint}", err=True)


@click.command(cls=_WithIds)
@click.argument("collection")
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="How many to list when no id is given.",
)
@address_option
def show(collection: str, ids: tuple[str, ...], limit: int, address: str) -> None:
    """Show candidates of COLLECTION: those with ID, or the first ones.

    Ids that there are not are told, and the exit code is 1 then.
    """
    with open_client(address) as client:
        if ids:
            batches = [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
            found = [
                one
                for batch in batches
                for one in client.batch_get_candidates(collection, batch, include_images=False)
            ]
        else:
            found = list(client.list_candidates(collection, page_size=limit).candidates)
    rows = [
        [c.id, c.content.modality.value, content_preview(c.content), attributes_row(c.attributes)]
        for c in found
    ]
    if rows or not ids:
        console().print(table(["id", "modality", "content", "attributes"], rows))
    known = {c.id for c in found}
    if missing := [one for one in ids if one not in known]:
        shown = ", ".join(map(repr, missing[:SHOWN])) + (", ..." if missing[SHOWN:] else "")
        click.echo(f"{collection} has no candidate {shown}", err=True)
        sys.exit(1)
