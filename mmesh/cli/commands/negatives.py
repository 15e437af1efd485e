"""`mmesh negatives`: hard negatives for training, mined from a collection of the live mesh."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from mmesh.aio import AsyncClient
from mmesh.cli.options import ReplacedPath, SourcePath, address_option
from mmesh.cli.output.progress import progress_bar
from mmesh.cli.output.tables import console, errors, table
from mmesh.collections import Collection
from mmesh.errors import FailedPrecondition
from mmesh.evaluation.datasets.dataset import Broken, DatasetError
from mmesh.evaluation.datasets.opening import Choice, open_dataset
from mmesh.evaluation.options import Effort
from mmesh.search import MAX_LIMIT
from mmesh.training.mining import live
from mmesh.training.mining.drawing import BELOW, TOP, Rules
from mmesh.training.mining.files import Row, write_negatives
from mmesh.training.mining.questions import Question, questions_of_dataset, questions_of_file
from mmesh.training.mining.states import find_mined
from mmesh.training.mining.statistics import Statistics

TIMEOUT_S, JUDGE_TIMEOUT_S = 60.0, 600.0
"""Deadline of a call, and of one whose hits are judged: that takes long on a CPU."""


@click.command()
@click.argument("collection")
@click.option(
    "--queries",
    type=SourcePath(),
    required=True,
    help="JSONL file of queries that says what is `relevant`, or the folder of a "
    "data set that `mmesh evaluate` reads.",
)
@click.option("--split", default="train", show_default=True, help="Of a data set.")
@click.option(
    "--out",
    type=ReplacedPath(),
    required=True,
    metavar="FILE.parquet",
    help="File to write; it appears when it is complete.",
)
@click.option(
    "--top",
    type=click.IntRange(2, MAX_LIMIT),
    default=TOP,
    show_default=True,
    help="Ranks to look at, of all modalities.",
)
@click.option(
    "--below",
    type=click.IntRange(0, MAX_LIMIT - 1),
    default=BELOW,
    show_default=True,
    help="Candidates of the wanted modality count from the next rank.",
)
@click.option(
    "--count",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="Negatives of a query.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Drop candidates of the wanted modality that score above this part of the "
    "positive, such as 0.95.",
)
@click.option(
    "--judge",
    type=float,
    metavar="SCORE",
    help="Drop candidates of the wanted modality that the reranker gives this score or more.",
)
@click.option(
    "--same-group",
    default="",
    metavar="ATTRIBUTE",
    help="Drop candidates of the wanted modality that share this attribute with a positive.",
)
@click.option(
    "--snapshot",
    default="",
    metavar="NAME",
    help="Mine this read-only copy of COLLECTION, which `mmesh collection copy` makes: the same "
    "file each time, whatever is written to COLLECTION.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn.")
@click.option(
    "--batch-size",
    "batch",
    type=click.IntRange(1, 256),
    default=32,
    show_default=True,
    help="Queries in a call.",
)
@click.option(
    "--in-flight", type=click.IntRange(1, 64), default=4, show_default=True, help="Calls at a time."
)
@address_option
def negatives(collection: str, queries: Path, split: str, out: Path, **given: Any) -> None:
    """Mine hard negatives for training from COLLECTION.

    For each query the first candidates of all modalities are found. A negative is of the wrong
    modality and above the positive, or of the wanted one and at the last ranks, with equal chance.
    The same seed and snapshot give the same file, byte for byte, or none where queries were not
    answered, or judged, in time. Without a snapshot the collection
    is searched as it is at each moment.
    """
    try:
        rules = Rules(
            given["top"],
            given["below"],
            given["margin"],
            given["judge"],
            given["same_group"],
            given["count"],
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        asyncio.run(_run(collection, queries, split, out, rules, given))
    except (DatasetError, OSError) as error:
        raise click.ClickException(str(error)) from None


async def _run(
    name: str, queries: Path, split: str, out: Path, rules: Rules, given: dict[str, Any]
) -> None:
    statistics, rows = Statistics(), []
    async with AsyncClient(given["address"]) as client:
        collection = await find_mined(client, name, given["snapshot"])
        timeout_s = TIMEOUT_S if rules.judge is None else JUDGE_TIMEOUT_S
        effort = Effort(given["batch"], given["in_flight"], timeout_s)
        miner = live.Miner(client, collection, rules, given["seed"], effort)
        with progress_bar() as bar:
            task = bar.add_task("mining", total=None)
            async for one in miner.mine(_questions(queries, split)):
                bar.advance(task)
                if isinstance(one, live.Refused):
                    statistics.refuse(one.reason, one.where, one.detail)
                    continue
                statistics.add(one.wanted, one.found, one.negatives)
                rows.append(Row.of(one))
    if not rows:
        _print(statistics)
        raise FailedPrecondition(f"no query of {queries} can be mined for; see above")
    if miner.late and collection.settings.read_only:
        _print(statistics)
        raise FailedPrecondition(
            f"{miner.late} queries were not answered, or judged, in time, so another run would "
            "give another file; nothing was written. Try again with a smaller --in-flight or "
            "--batch-size, or when the mesh has less to do"
        )
    writes = miner.state.writes
    facts = _facts(name, collection, queries, writes)
    facts |= {"rules": asdict(rules), "seed": given["seed"], "late": miner.late}
    facts["judged_in_part"] = miner.judged_in_part
    write_negatives(out, rows, facts)
    _print(statistics)
    if miner.late:
        errors().print(f"not answered, or judged, in time: {miner.late} queries")
    if miner.judged_in_part:
        errors().print(
            f"of {miner.judged_in_part} queries some candidates were not judged, and are dropped"
        )
    if writes:
        errors().print(
            f"{name} was written {writes} times meanwhile: mined again, the file may differ; "
            "--snapshot mines one state"
        )
    console().print(f"negatives of {len(rows)} queries in {out}", soft_wrap=True)


def _questions(queries: Path, split: str) -> Iterator[Question | Broken]:
    if queries.is_dir():
        return questions_of_dataset(open_dataset(queries, "", Choice(split)))
    return questions_of_file(queries)


def _facts(name: str, collection: Collection, queries: Path, writes: int) -> dict[str, Any]:
    facts = {
        "collection": name,
        "snapshot": collection.name if collection.settings.read_only else "",
        "created": collection.create_time.isoformat(),
        "fingerprint": collection.model_fingerprint,
        "token": collection.token,
        "writes_meanwhile": writes,
        "queries": queries.name,
        "mmesh": version("mmesh"),
    }
    if queries.is_file():
        with queries.open("rb") as file:
            facts["queries_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return facts


def _print(statistics: Statistics) -> None:
    columns, rows = statistics.table()
    if rows:
        console().print(table(columns, rows))
    for reason, count in sorted(statistics.refused.items()):
        example = statistics.examples[reason]
        errors().print(f"left out: {count} of {reason}, such as {example}", soft_wrap=True)
