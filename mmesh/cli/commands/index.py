"""`mmesh index segments|compact|snapshot|verify`: the index from inside."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from mmesh.cli.calls import shards
from mmesh.cli.calls.shards import Segment, Shard, find_addresses
from mmesh.cli.options import json_option
from mmesh.cli.output.tables import console, errors, table
from mmesh.errors import MmeshError

Answer = TypeVar("Answer")
Named = dict[str, Answer]

_data_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".mmesh"),
    show_default=True,
    help="Folder of the local mesh.",
)
_addresses_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--index-address",
    "given",
    multiple=True,
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
@_data_option
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
@_data_option
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
@_data_option
@_addresses_option
def snapshot(collection: str, as_json: bool, data: Path, given: tuple[str, ...]) -> None:
    """Store a snapshot of what each process holds of COLLECTION, from which new ones start."""
    answers = shards.ask_all(find_addresses(data, given), shards.create_snapshot(collection))
    found, failed = _sorted_out(answers)
    if as_json:
        print(json.dumps({name: asdict(made) for name, made in found.items()}))
    elif found:
        rows = [(name, made.number, made.token) for name, made in found.items()]
        console().print(table(["process", "snapshot", "token"], rows))
    _finish(failed)


@index.command()
@click.option("--collection", metavar="NAME", help="Only this one.")
@click.option("--log-url", metavar="URL", help="The log, where it is not in the data folder.")
@click.option("--blobs-url", metavar="URL", help="The snapshots, where they are not there either.")
@json_option
@_data_option
def verify(
    collection: str | None, log_url: str | None, blobs_url: str | None, as_json: bool, data: Path
) -> None:
    """Restore the newest snapshots into a process of their own and compare them with the log.

    Needs no running mesh. The exit code is 0 when all is as it should be.
    """
    flags = [("--log-url", log_url), ("--blobs-url", blobs_url), ("--collection", collection)]
    command = [sys.executable, "-m", "services.index.verify", "--data-dir", str(data)]
    command += [part for flag, value in flags if value for part in (flag, value)]
    command += ["--json"] if as_json else []
    sys.exit(subprocess.run(command, check=False).returncode)


def _sorted_out(answers: Named[Answer | MmeshError]) -> tuple[Named[Answer], Named[MmeshError]]:
    failed = {n: answer for n, answer in answers.items() if isinstance(answer, MmeshError)}
    found = {n: answer for n, answer in answers.items() if not isinstance(answer, MmeshError)}
    return found, failed


def _finish(failed: Named[MmeshError]) -> None:
    """Say what did not answer, on stderr, and exit with 1 then."""
    for name, error in failed.items():
        errors().print(f"{name}: {error.message} [{error.reason}]", markup=False)
    if failed:
        sys.exit(1)


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
            name, f"{one.shard}/{one.shard_count}", one.replica, "yes" if one.ready else "NO",
            one.candidates, one.lag, f"{one.memory.get('process', 0) / 1e6:.0f}",
            ", ".join(one.refused_collections),
        ]
        for name, one in found.items()
    ]  # fmt: skip
    columns = ["process", "shard", "replica", "ready", "candidates", "behind", "MB in all",
               "refused"]  # fmt: skip
    return table(columns, rows)
