"""`mmesh index segments|compact|snapshot|verify|gc|migrate`: the index from inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from mmesh.cli.calls import shards
from mmesh.cli.calls.shards import Segment, Shard, find_addresses
from mmesh.cli.options import checked_address, data_option, json_option
from mmesh.cli.output.tables import console, errors, table
from mmesh.errors import MmeshError

Answer = TypeVar("Answer")
Named = dict[str, Answer]

_addresses_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--index-address",
    "given",
    multiple=True,
    callback=checked_address,
    metavar="HOST:PORT",
    help="An index process of a mesh that is not local; may be given several times.",
)


@click.group()
def index() -> None:
    """Look into the index processes, and have them merge, store and verify what they hold.

    They are asked directly, not through the gateway.
    """


@index.command()
@click.argument("collection", required=False)
@json_option
@data_option
@_addresses_option
def segments(collection: str | None, as_json: bool, data: Path, given: tuple[str, ...]) -> None:
    """Show the segments of all shards, or of COLLECTION only."""
    addresses = find_addresses(data, given)
    found, failed = _sorted_out(shards.ask_all(addresses, shards.get_shard))
    name = _name_of(collection, {n: addresses[n] for n in found}) if collection else None
    if as_json:
        print(json.dumps({n: _shard_row(shard, name) for n, shard in found.items()}))
    elif found:
        console().print(_segments_table({n: _of(s.segments, name) for n, s in found.items()}))
        console().print()
        console().print(_shards_table(found))
    _finish(failed)


@index.command()
@click.argument("collection")
@json_option
@data_option
@_addresses_option
def compact(collection: str, as_json: bool, data: Path, given: tuple[str, ...]) -> None:
    """Merge what each process holds of COLLECTION into few segments; searches go on meanwhile."""
    answers = shards.ask_all(find_addresses(data, given), shards.compact(collection))
    found, failed = _sorted_out(answers)
    if as_json:
        print(json.dumps({name: [asdict(one) for one in held] for name, held in found.items()}))
    elif found:
        console().print(_segments_table(found))
    _finish(failed)


@index.command()
@click.argument("collection")
@json_option
@data_option
@_addresses_option
def snapshot(collection: str, as_json: bool, data: Path, given: tuple[str, ...]) -> None:
    """Store a snapshot of each shard of COLLECTION, from which new processes start.

    One replica of a shard stores it; the next one is asked only where that fails.
    """
    addresses = find_addresses(data, given)
    answers, all_stored = shards.ask_a_replica_of_each(
        addresses, shards.create_snapshot(collection)
    )
    found, failed = _sorted_out(answers)
    if as_json:
        print(json.dumps({name: asdict(made) for name, made in found.items()}))
    elif found:
        rows = [(name, made.number, made.token) for name, made in found.items()]
        console().print(table(["process", "snapshot", "token"], rows))
    _say(failed)
    sys.exit(0 if all_stored else 1)


@index.command()
@click.option("--collection", metavar="NAME", help="Only this one.")
@click.option("--log-url", metavar="URL", help="The log, where it is not in the data folder.")
@click.option("--blobs-url", metavar="URL", help="The snapshots, where they are not there either.")
@json_option
@data_option
def verify(
    collection: str | None, log_url: str | None, blobs_url: str | None, as_json: bool, data: Path
) -> None:
    """Restore the newest snapshots into a process of their own and compare them with the log.

    Needs no running mesh. The exit code is 0 when all is as it should be.
    """
    flags = ["--collection", collection] if collection else []
    flags += ["--json"] if as_json else []
    _run("verify", data, log_url, blobs_url, flags)


@index.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--adopt", is_flag=True, help="The pictures were another log's; now they are of this."
)
@click.option("--log-url", metavar="URL", help="The log, where it is not in the data folder.")
@click.option("--blobs-url", metavar="URL", help="The pictures, where they are not there either.")
@json_option
@data_option
def gc(
    log_url: str | None,
    blobs_url: str | None,
    dry_run: bool,
    adopt: bool,
    as_json: bool,
    data: Path,
) -> None:
    """Remove pictures from the store that no candidate has any more.

    A running mesh does that by itself now and then. They are kept for a day
    (MMESH_INDEX_GC_GRACE_S) after they were first found without a candidate, so that a log that is
    put back to an earlier state finds them. A store belongs to the log that sweeps it first.
    """
    flags = [*(["--dry-run"] if dry_run else []), *(["--adopt"] if adopt else [])]
    flags += ["--json"] if as_json else []
    _run("sweep", data, log_url, blobs_url, flags)


@index.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option(
    "--recount",
    is_flag=True,
    help="Count attributes anew, once no process from before version 0004 writes any more.",
)
@click.option("--log-url", metavar="URL", help="The log, where it is not in the data folder.")
@data_option
def migrate(log_url: str | None, recount: bool, dry_run: bool, data: Path) -> None:
    """Bring the tables of the log to this release's version, beside processes that use it.

    Index processes do the same when they start; this is for those who want to see it end before.
    It may run again. What it prints says whether processes of earlier releases may go on.
    """
    flags = [*(["--dry-run"] if dry_run else []), *(["--recount"] if recount else [])]
    _run("migrate", data, log_url, None, flags)


def _run(
    tool: str, data: Path, log_url: str | None, blobs_url: str | None, flags: Sequence[str]
) -> NoReturn:
    """Run a tool of the index service as a process of its own, and exit with its code."""
    command = [
        sys.executable,
        "-P",
        "-m",
        f"services.index.commands.{tool}",
        "--data-dir",
        str(data),
        *flags,
    ]
    command += ["--blobs-url", blobs_url] if blobs_url else []
    # Not a flag: everybody on the machine may read those, and there may be a password in it.
    secrets = {"MMESH_INDEX_LOG_URL": log_url} if log_url else {}
    done = subprocess.run(command, env={**os.environ, **secrets}, check=False)
    sys.exit(done.returncode)


def _sorted_out(answers: Named[Answer | MmeshError]) -> tuple[Named[Answer], Named[MmeshError]]:
    failed = {n: answer for n, answer in answers.items() if isinstance(answer, MmeshError)}
    found = {n: answer for n, answer in answers.items() if not isinstance(answer, MmeshError)}
    return found, failed


def _finish(failed: Named[MmeshError]) -> None:
    """Say what did not answer, and exit with 1 then."""
    _say(failed)
    if failed:
        sys.exit(1)


def _say(failed: Named[MmeshError]) -> None:
    for name, error in failed.items():
        errors().print(f"{name}: {error.message} [{error.reason}]", markup=False)


def _name_of(collection: str, addresses: dict[str, str]) -> str:
    """Return the name of a collection that may be given by an alias, as the first process says."""
    first = dict(list(addresses.items())[:1])
    for answer in shards.ask_all(first, shards.get_name(collection)).values():
        if isinstance(answer, MmeshError):
            raise answer
        return answer
    return collection


def _of(held: Iterable[Segment], collection: str | None) -> tuple[Segment, ...]:
    return tuple(one for one in held if collection in (None, one.collection))


def _shard_row(shard: Shard, collection: str | None) -> dict[str, Any]:
    return asdict(shard) | {"segments": [asdict(s) for s in _of(shard.segments, collection)]}


def _segments_table(found: Named[tuple[Segment, ...]]) -> object:
    rows = [
        [
            name, one.collection, one.modality, one.index_factory, one.rows, one.deleted,
            f"{one.bytes / 1e6:.1f}", f"{one.recall:.3f}", one.nprobe or "",
        ]
        for name, held in found.items()
        for one in held
    ]  # fmt: skip
    columns = ["process", "collection", "modality", "index", "rows", "deleted", "MB", "recall",
               "nprobe"]  # fmt: skip
    return table(columns, rows)


def _shards_table(found: Named[Shard]) -> object:
    rows = [
        [
            name,
            f"{one.shard}/{one.shard_count}",
            one.replica,
            "yes" if one.ready else "NO",
            one.candidates,
            one.lag,
            f"{one.memory.get('process', 0) / 1e6:.0f}",
            ", ".join(one.refused_collections),
        ]
        for name, one in found.items()
    ]
    columns = ["process", "shard", "replica", "ready", "candidates", "behind", "MB in all",
               "refused"]  # fmt: skip
    return table(columns, rows)
