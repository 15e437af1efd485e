"""`mmesh evaluate`: how good the mesh is on a data set, and what differs between two runs."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress, TaskID

from mmesh.aio import AsyncClient
from mmesh.cli.options import SourcePath, address_option, json_option, restart_option
from mmesh.cli.output.progress import progress_bar
from mmesh.cli.output.tables import console, errors, table
from mmesh.evaluation.comparing import (
    AVERAGE,
    Compared,
    check_baseline,
    compare_runs,
    regressions,
    tasks_lost,
)
from mmesh.evaluation.cost import TooMuch
from mmesh.evaluation.datasets.dataset import Dataset, DatasetError
from mmesh.evaluation.datasets.mbeir import PROMPTS
from mmesh.evaluation.datasets.opening import KINDS, Choice, open_dataset
from mmesh.evaluation.folder import OtherEvaluation, held
from mmesh.evaluation.gate import Threshold, failures, parse_threshold
from mmesh.evaluation.metrics import DuplicateHits
from mmesh.evaluation.options import Effort, Options, Target, Way
from mmesh.evaluation.report.tables import Table, comparison_table, headline_table
from mmesh.evaluation.results import RESULTS, Results, TaskResult
from mmesh.evaluation.run import Evaluation, Limits, Place
from mmesh.search import MAX_LIMIT, MAX_RERANK, MergePolicy

_FOLDER = Path("mmesh-evaluations")
_TIMEOUT_S, _JUDGE_TIMEOUT_S = 60.0, 600.0
_Path = SourcePath()


class _DatasetOrCommand(click.Group):
    """Takes what is no command for the data set of `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `run` before a data set."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


_HELP = """Measure the mesh on a data set, or compare two runs.

\b
mmesh evaluate ~/M-BEIR --yes              all 16 tasks, in local pools and the union
mmesh evaluate ~/beir/scifact --rerank 10  with the judge
mmesh evaluate compare RUN_A RUN_B         what differs, and whether by chance
mmesh evaluate run --help                  all options; the word `run` may be left out
"""


@click.group(
    cls=_DatasetOrCommand, subcommand_metavar="DATASET [OPTIONS] | compare A B", help=_HELP
)
def evaluate() -> None:
    """Hold the commands."""


def _threshold(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> list[Threshold]:
    try:
        return [parse_threshold(one) for one in given]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@evaluate.command()
@click.argument("dataset", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(KINDS),
    help="Of the data set.  [default: told by its files]",
)
@click.option("--split", default="", help="Split.  [default: the one that publications report]")
@click.option("--tasks", default="", metavar="A,B", help="M-BEIR's tasks.  [default: all there]")
@click.option(
    "--pool",
    type=click.Choice(["local", "union", "both"]),
    default="both",
    show_default=True,
    help="What tasks are searched among: their own pool, or all.",
)
@click.option(
    "--target",
    type=click.Choice([one.value for one in Target]),
    default="any",
    show_default=True,
    help="Modality asked for: any (the mesh decides), the wanted one, "
    "or each by itself, merged by raw scores, as UniIR's one list.",
)
@click.option(
    "--prompt",
    type=click.Choice(PROMPTS),
    default="1",
    show_default=True,
    help="Which of M-BEIR's four instructions; `random` draws one for each query.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of --prompt random.")
@click.option("--instruction", default="", help="In place of the data set's; not M-BEIR's.")
@click.option(
    "--rerank",
    type=click.IntRange(0, MAX_RERANK),
    default=0,
    show_default=True,
    help="Hits to judge; 0: none.",
)
@click.option(
    "--merge",
    type=click.Choice([policy.value for policy in MergePolicy]),
    help="How the modalities' lists become one.  [default: the mesh's]",
)
@click.option(
    "--limit",
    type=click.IntRange(0, MAX_LIMIT),
    default=0,
    help="Hits in run files.  [default: as many as the metrics look at]",
)
@click.option("--collection", default="", help="Collection of the pool.  [default: by data set]")
@click.option("--model", default="", help="Model of a new collection.  [default: the mesh's first]")
@click.option("--exact", is_flag=True, help="Search a new collection exhaustively, as papers do.")
@click.option("--no-ingest", is_flag=True, help="The pool is in the collection already.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help=f"Folder of the run.  [default: {_FOLDER}/NAME]",
)
@click.option(
    "--batch-size",
    "batch",
    type=click.IntRange(1, 256),
    default=32,
    show_default=True,
    help="Searches in a call.",
)
@click.option(
    "--in-flight", type=click.IntRange(1, 64), default=4, show_default=True, help="Calls at a time."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    help="Seconds a call may take.  [default: 60; 600 when hits are judged]",
)
@click.option(
    "--max-hours",
    type=float,
    default=24.0,
    show_default=True,
    help="Longest time to put the pool in, as estimated.",
)
@click.option("--yes", is_flag=True, help="Go on even if it cannot fit or takes longer.")
@click.option(
    "--fail-below",
    multiple=True,
    metavar="METRIC=VALUE",
    callback=_threshold,
    help="Exit with 1 when a mean over tasks, or TASK:METRIC, is below, such as "
    "headline=0.4 or cirr_task7:hit@5=0.5; for mismatch, above.",
)
@click.option(
    "--baseline",
    type=_Path,
    metavar="RUN",
    help="Exit with 1 when this run is worse than that one by more than chance.",
)
@restart_option
@address_option
def run(dataset: Path, **given: Any) -> None:
    """Measure the mesh on the data set in the folder DATASET.

    M-BEIR, CIRCO, CIRR, FashionIQ, BEIR's format, or pool.jsonl and queries.jsonl of your own. Its
    pool goes into a collection once; its queries are searched, and the figures with a report are
    written to a folder. When it is interrupted, the same command goes on where it left off.
    """
    if importlib.util.find_spec("PIL") is None:
        raise click.ClickException("reports need Pillow: pip install 'mmesh[evaluation]'")
    with _as_click_errors():
        opened = open_dataset(dataset, given["kind"] or "", _choice(given))
        options = _options(given)
        folder = given["out"] or _FOLDER / f"{opened.name}-{options.digest(opened)}"
        if given["baseline"]:
            check_baseline(given["baseline"], opened, folder)
        place = Place(folder, given["address"], given["collection"], given["model"], given["exact"])
        with held(folder):
            results = asyncio.run(_run(opened, options, place, given))
    print_table(headline_table(results))
    console().print(f"report: {folder / 'report.html'}", soft_wrap=True)
    sys.exit(_gate(results, folder, given))


def _names(listed: str) -> tuple[str, ...]:
    return tuple(one.strip() for one in listed.split(",") if one.strip())


def _choice(given: dict[str, Any]) -> Choice:
    unions = given["pool"] != "local"
    return Choice(
        given["split"],
        _names(given["tasks"]),
        given["prompt"],
        given["seed"],
        unions,
        given["instruction"],
    )


def _options(given: dict[str, Any]) -> Options:
    ways = {"local": (Way.LOCAL,), "union": (Way.UNION,), "both": (Way.LOCAL, Way.UNION)}
    merge = MergePolicy(given["merge"]) if given["merge"] else None
    try:
        return Options(
            ways[given["pool"]], Target(given["target"]), given["rerank"], merge, given["limit"]
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None


async def _run(dataset: Dataset, options: Options, place: Place, given: dict[str, Any]) -> Results:
    from mmesh.evaluation.report.writing import write_report

    timeout = given["timeout"] or (_JUDGE_TIMEOUT_S if options.rerank else _TIMEOUT_S)
    effort = Effort(given["batch"], given["in_flight"], timeout)
    limits = Limits(given["max_hours"], given["yes"], not given["no_ingest"])
    async with AsyncClient(place.address) as client:
        with progress_bar() as bar:
            evaluation = Evaluation(client, dataset, place, options, effort, limits, _Bars(bar))
            if given["restart"]:
                await evaluation.restart()
            results = await evaluation.run()
        await write_report(client, results, evaluation.poor, place.folder)
    return results


class _Bars:
    """A bar for each stage."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._bar.console.print(line, soft_wrap=True)

    def stage(self, name: str, total: int, done: int) -> None:
        """Begin another bar."""
        self._task = self._bar.add_task(name, total=total, completed=done)

    def advance(self, done: int) -> None:
        """Move it."""
        if self._task is not None:
            self._bar.update(self._task, completed=done)


@contextmanager
def _as_click_errors() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        errors().print("interrupted; the same command goes on from here")
        raise
    except TooMuch as error:
        raise click.ClickException(f"{error}; --yes goes on all the same") from None
    except OtherEvaluation as error:
        hint = "--restart begins anew, --out FOLDER keeps both"
        raise click.ClickException(f"{error}; {hint}") from None
    except DatasetError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:  # a full disk; what was written before is kept
        raise click.ClickException(f"{error}; the same command goes on from here") from None
    except DuplicateHits as error:
        raise click.ClickException(f"the mesh answered with a duplicate: {error}") from None


def _gate(results: Results, folder: Path, given: dict[str, Any]) -> int:
    lines = [f"below: {line}" for line in failures(results, given["fail_below"])]
    if given["baseline"]:
        with _as_click_errors():
            compared = compare_runs(given["baseline"], folder)
            gone = tasks_lost(given["baseline"], folder)
        lines += [
            f"worse than the baseline: {one.task} ({one.way}) {one.metric} {one.a:.4f} -> "
            f"{one.b:.4f}, p = {one.difference.p_value:.4f}"
            for one in regressions(compared)
        ]
        lines += _lost(compared, "the baseline", "this run")
        lines += _lacking(
            [one for one in gone if _asked_for(one, given)], "the baseline", "this run"
        )
    for line in lines:
        errors().print(line, soft_wrap=True)
    return 1 if lines else 0


def _asked_for(task: TaskResult, given: dict[str, Any]) -> bool:
    """Tell whether --tasks and --pool leave a task of another run in."""
    names = _names(given["tasks"])
    return (not names or task.task in names) and given["pool"] in ("both", task.way)


@evaluate.command()
@click.argument("a", type=_Path)
@click.argument("b", type=_Path)
@click.option("--metric", default="", help="Metric to compare.  [default: each task's headline]")
@json_option
def compare(a: Path, b: Path, metric: str, as_json: bool) -> None:
    """Compare two runs, A and B: their folders or run.json.

    Only queries that both have count. The interval and p value are those of the paired bootstrap.
    """
    with _as_click_errors():
        compared = compare_runs(a, b, metric)
    if as_json:
        print(json.dumps([asdict(one) for one in compared], indent=1))
        return
    print_table(comparison_table(compared, _short(a), _short(b)))
    for line in [*_lost(compared, "A", "B"), *_lacking(tasks_lost(a, b), "A", "B")]:
        console().print(line, soft_wrap=True)
    worse = len([one for one in regressions(compared) if one.task != AVERAGE])
    console().print(f"{worse} of {len(compared)} rows: B is worse by more than chance (Holm)")


def _lost(compared: list[Compared], a: str, b: str) -> list[str]:
    """Return a line for each task of which B lacks queries: a mean of fewer proves less."""
    return [
        f"{b} lacks {one.lost:,} of the {one.lost + one.queries:,} queries of {a}: "
        f"{one.task} ({one.way})"
        for one in compared
        if one.lost
    ]


def _lacking(tasks: list[TaskResult], a: str, b: str) -> list[str]:
    return [
        f"{b} lacks a task of {a}: {one.task} ({one.way}), {one.queries:,} queries" for one in tasks
    ]


def _short(path: Path) -> str:
    return path.parent.name if path.name == RESULTS else path.name


def print_table(one: Table) -> None:
    """Print a table of a report on the terminal."""
    console().print(table(one.columns, one.rows, one.title))
