"""`mmesh rerank check` and `mmesh encode check`: does a running service answer as it should?"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from mmesh import wire
from mmesh.cli.calls.answers import EncoderAnswers, RerankerAnswers
from mmesh.cli.options import WrittenPath, json_option
from mmesh.cli.output.tables import console, table
from mmesh.wire.transport import open_channel

if TYPE_CHECKING:
    from mmesh.models.parity import Group, Reference, Row


@dataclass(frozen=True, slots=True)
class _Order:
    """What to compare a service with, and what to do with what is found."""

    address: str
    reference: str
    stored: Path | None
    save: Path | None
    tolerance: float
    as_json: bool


Command = Callable[..., Any]


def _options(service: str, what: str) -> Callable[[Command], Command]:
    file = click.Path(dir_okay=False, path_type=Path)
    options = (
        click.option("--address", metavar="HOST:PORT", default="",
                     help=f"The {service}.  [default: that of the local mesh]"),
        click.option("--data", type=click.Path(file_okay=False, path_type=Path),
                     default=Path(".mmesh"), show_default=True,
                     help="Folder of the local mesh."),
        click.option("--reference", default="", metavar="MODEL",
                     help="Folder or hf:ORG/NAME@REVISION: compare with the "
                     f"{what} of this model by transformers, in float32 in this process."),
        click.option("--stored", type=file, help="Compare with what --save wrote."),
        click.option("--save", type=WrittenPath(), metavar="FILE",
                     help=f"Store the reference's {what}, or else the {service}'s own, for "
                     f"--stored and for the {service}'s --canary."),
        click.option("--tolerance", type=float, default=1e-4, show_default=True,
                     help="Largest difference allowed; half precision needs about 0.02."),
        json_option,
    )  # fmt: skip

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.group()
def rerank() -> None:
    """Look at the reranker."""


@click.group()
def encode() -> None:
    """Look at the encoder."""


@rerank.command("check")
@_options("reranker", "scores")
@click.option(
    "--template", default="auto", show_default=True, help="Prompt template of the reference."
)
def check_reranker(data: Path, template: str, **options: Any) -> None:
    """Score built-in pairs alone, together and in another order, and by a reference.

    Prints the largest difference; exit code 1 when it is above the tolerance.
    """
    order = _order("reranker", data, **options)
    _exit_with(_check_reranker(order, template))


@encode.command("check")
@_options("encoder", "vectors")
def check_encoder(data: Path, **options: Any) -> None:
    """Encode built-in inputs alone, together and in another order, and by a reference.

    Prints the largest difference of a number of a vector; exit code 1 when it is above the
    tolerance.
    """
    _exit_with(_check_encoder(_order("encoder", data, **options)))


def _exit_with(check: Coroutine[Any, Any, int]) -> NoReturn:
    try:
        sys.exit(asyncio.run(check))
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is not installed: run `pip install 'mmesh[lite]'`, and for --reference "
            "`make setup-models`"
        ) from None


def _order(service: str, data: Path, *, address: str, **options: Any) -> _Order:
    if options["reference"] and options["stored"]:
        raise click.UsageError("give --reference or --stored, not both")
    return _Order(address or _local_address(data, service), **options)


def _local_address(data: Path, service: str) -> str:
    path = data / "mesh.json"
    try:
        return str(json.loads(path.read_text())["services"][service]["address"])
    except (OSError, ValueError, KeyError):
        raise click.ClickException(
            f"{path} does not say where the {service} is: give --data of a mesh that `mmesh up` "
            "started, or --address"
        ) from None


async def _check_reranker(order: _Order, template: str) -> int:
    from mmesh.models.parity import judge_groups

    def reference() -> Sequence[Group]:
        from mmesh.models.judges.reference_judge import open_reference_judge

        return judge_groups(open_reference_judge(order.reference, template).score)

    async with open_channel(order.address) as channel:
        service = RerankerAnswers(channel)
        model = await service.model()
        name = f"{model.name} {model.fingerprint}"
        return await _compare(order, name, judge_groups(service.score), reference)


async def _check_encoder(order: _Order) -> int:
    from mmesh.models.parity import encoder_groups, encoding_by

    async with open_channel(order.address) as channel:
        service = EncoderAnswers(channel)
        model = await service.model()
        modalities = frozenset(m for n in model.modalities if (m := wire.modality_from_pb(n)))

        def reference() -> Sequence[Group]:
            from mmesh.models.encoders.families import EncoderChoice, open_encoder

            choice = EncoderChoice(order.reference, dtype="float32", dim=model.dim)
            return encoder_groups(encoding_by(open_encoder(choice)), modalities)

        name = f"{model.name} {model.fingerprint}"
        groups = encoder_groups(service.encode, modalities)
        return await _compare(order, name, groups, reference)


async def _compare(
    order: _Order,
    name: str,
    groups: Sequence[Group],
    open_reference: Callable[[], Sequence[Group]],
) -> int:
    """Measure, store and print; return the exit code."""
    from mmesh.models import parity

    reference = await _reference(order, open_reference)
    rows = await parity.measure(groups, reference)
    if order.save:
        own = parity.Reference(name, {row.name: row.answer for row in rows})
        parity.save_reference(order.save, reference or own)
    _print(order, name, rows, reference)
    return int(parity.largest(rows) > order.tolerance)


async def _reference(
    order: _Order, open_reference: Callable[[], Sequence[Group]]
) -> Reference | None:
    from mmesh.models import parity

    if order.stored:
        return parity.load_reference(order.stored)
    if not order.reference:
        return None
    answers = await parity.ask_alone(open_reference())
    return parity.Reference(f"{order.reference} in this process", answers)


def _print(order: _Order, name: str, rows: Sequence[Row], reference: Reference | None) -> None:
    from mmesh.models.parity import largest

    worst = largest(rows)
    if order.as_json:
        found = [
            {"probe": row.name, "together": row.together, "shuffled": row.shuffled}
            | ({} if row.reference is None else {"reference": row.reference})
            for row in rows
        ]
        click.echo(json.dumps({"model": name, "max_abs_diff": worst, "probes": found}))
        return
    columns = ["probe", "score" if len(rows[0].answer) == 1 else "dim", "together", "other order"]
    against = f", against {reference.source}" if reference else ""
    console().print(table([*columns, "reference"], [_row(row) for row in rows], f"{name}{against}"))
    console().print(f"largest difference {worst:.2g}; {order.tolerance:g} is allowed")


def _row(row: Row) -> list[str]:
    shown = f"{row.answer[0]:.6f}" if len(row.answer) == 1 else str(len(row.answer))
    differences = (row.together, row.shuffled, row.reference)
    return [row.name, shown, *("" if one is None else f"{one:.1e}" for one in differences)]
