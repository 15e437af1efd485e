"""`mmesh migrate`: an alias moves to a collection of another model, without downtime."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import click

from mmesh import migration as steps
from mmesh.aio import AsyncClient
from mmesh.candidates import WriteReport
from mmesh.cli.options import WrittenPath, address_option
from mmesh.cli.output.html import comparison_page
from mmesh.cli.output.progress import progress_bar
from mmesh.cli.output.tables import console, errors, table
from mmesh.content import Content, Modality
from mmesh.migration import Comparison, Migration

Answer = TypeVar("Answer")
SHOWN = 20
_HELP = """Move an alias to a collection of another model, while it is searched and written.

\b
mmesh migrate photos --model siglip2    does everything, and may be repeated
mmesh migrate rollback photos           takes it back
mmesh migrate finish photos             deletes the old collection

Everything that is written goes to both collections until `finish` or `cancel`.
"""


class _Migrate(click.Group):
    """Takes what is no subcommand for the alias of `start`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `start` in front of an alias."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["start", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Migrate, help=_HELP, subcommand_metavar="ALIAS --model NAME | COMMAND ALIAS")
def migrate() -> None:
    """Hold the commands."""


@migrate.command()
@click.argument("alias")
@click.option(
    "--model",
    required=True,
    metavar="NAME",
    help="Name or fingerprint of the new model, one that the mesh serves.",
)
@click.option(
    "--queries",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What both models are asked, a query on each line; by default texts of the collection, or "
    "pictures where it has no texts.",
)
@click.option(
    "--report",
    type=WrittenPath(),
    metavar="FILE.html",
    help="Write what both models find, side by side, as a page.",
)
@click.option("--no-switch", is_flag=True, help="Leave the alias to `mmesh migrate switch`.")
@click.option(
    "--allow-missing", is_flag=True, help="Move the alias although the new model cannot encode all."
)
@address_option
def start(
    alias: str,
    model: str,
    queries: Path | None,
    report: Path | None,
    no_switch: bool,
    allow_missing: bool,
    address: str,
) -> None:
    """Do everything: create the new collection, fill it, compare, and move ALIAS to it.

    When it is interrupted, the same command goes on where it left off.
    """

    async def work(client: AsyncClient) -> None:
        migration = await steps.begin(client, alias, model)
        click.echo(f"{migration.old.name} and {migration.new.name} are written together")
        _tell_refused(await _copy(client, migration))
        migration = await steps.find(client, alias)
        console().print(_counts(migration))
        click.echo(_summary(await _compare(client, migration, asked, report)))
        if not no_switch:
            _tell_switched(await steps.switch(client, alias, allow_missing=allow_missing))

    asked = [Content.of(line) for line in _lines_of(queries)] if queries else []
    _with_client(address, work)


@migrate.command()
@click.argument("alias")
@address_option
def status(alias: str, address: str) -> None:
    """Say how far the migration of ALIAS is."""
    migration = _with_client(address, lambda client: steps.find(client, alias))
    console().print(_counts(migration))
    live = migration.new if migration.is_switched else migration.old
    click.echo(f"{alias} is {live.name}")


@migrate.command()
@click.argument("alias")
@click.option(
    "--allow-missing", is_flag=True, help="Move it although the new collection lacks candidates."
)
@address_option
def switch(alias: str, allow_missing: bool, address: str) -> None:
    """Move ALIAS to the new collection."""
    _tell_switched(
        _with_client(
            address, lambda client: steps.switch(client, alias, allow_missing=allow_missing)
        )
    )


@migrate.command()
@click.argument("alias")
@address_option
def rollback(alias: str, address: str) -> None:
    """Move ALIAS back to the old collection; both stay in step."""
    migration = _with_client(address, lambda client: steps.roll_back(client, alias))
    click.echo(f"{alias} is {migration.old.name} again")


@migrate.command()
@click.argument("alias")
@address_option
def finish(alias: str, address: str) -> None:
    """Delete the old collection."""
    count = _with_client(address, lambda client: steps.finish(client, alias))
    click.echo(f"deleted the old collection with {count} candidates")


@migrate.command()
@click.argument("alias")
@address_option
def cancel(alias: str, address: str) -> None:
    """Delete the new collection."""
    count = _with_client(address, lambda client: steps.cancel(client, alias))
    click.echo(f"deleted the new collection with {count} candidates")


def _with_client(address: str, work: Callable[[AsyncClient], Awaitable[Answer]]) -> Answer:
    async def run() -> Answer:
        async with AsyncClient(address) as client:
            return await work(client)

    return asyncio.run(run())


def _lines_of(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    return [line for line in lines if line]


async def _copy(client: AsyncClient, migration: Migration) -> WriteReport:
    with progress_bar() as bar:
        total = sum(migration.old.candidates.values())
        task = bar.add_task("encoding", total=total)
        return await steps.copy(client, migration, lambda done: bar.update(task, completed=done))


async def _compare(
    client: AsyncClient, migration: Migration, queries: Sequence[Content], report: Path | None
) -> Comparison:
    """Ask both, and write each pair to the page before the next is asked for."""
    comparison = Comparison()
    with comparison_page(report, migration) if report else nullcontext() as write:
        async for pair in steps.compare(
            client, migration, queries, include_content=report is not None
        ):
            comparison.add(pair)
            if write is not None:
                await asyncio.to_thread(write, pair)
    return comparison


def _tell_refused(report: WriteReport) -> None:
    if not report.rejected:
        return
    rows = [(one.id, one.error.reason, one.error.message) for one in report.rejected[:SHOWN]]
    title = f"refused by the new model (first {len(rows)} of {len(report.rejected)})"
    errors().print(table(["id", "reason", "message"], rows, title))


def _counts(migration: Migration) -> object:
    rows = [
        [one.name, *(one.candidates[modality] for modality in Modality), one.model_fingerprint]
        for one in (migration.old, migration.new)
    ]
    return table(["collection", *(modality.value for modality in Modality), "model"], rows)


def _summary(comparison: Comparison) -> str:
    overlap, correlation = comparison.overlap, comparison.correlation
    if overlap is None:
        return _nothing_compared(comparison.asked)
    ranks = "none" if correlation is None else f"{correlation:.2f}"
    return (
        f"{comparison.asked} queries: {overlap:.0%} of the first {steps.DEPTH} "
        f"hits in common, rank correlation of these {ranks}"
    )


def _nothing_compared(asked: int) -> str:
    if asked:
        return f"nothing was compared: neither collection found anything for {asked} queries"
    return "nothing was compared: there is nothing to ask with; --queries FILE gives queries"


def _tell_switched(migration: Migration) -> None:
    click.echo(
        f"{migration.alias} is {migration.new.name}; `mmesh migrate rollback {migration.alias}` "
        f"takes it back, `mmesh migrate finish {migration.alias}` deletes {migration.old.name}"
    )
