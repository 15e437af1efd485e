"""`mmesh train`: a model on data of one's own, by a recipe in a file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmesh.cli.output.progress import progress_bar
from mmesh.cli.output.tables import console, errors, table
from mmesh.training.errors import TrainingError, not_importable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from mmesh.training.loop import Step


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print steps, tokens, memory and hours; train "
    "nothing. One batch of each stage is measured.",
)
@click.option("--restart", is_flag=True, help="Begin at the beginning, whatever was done before.")
def train(config: Path, dry_run: bool, restart: bool) -> None:
    """Train a model by the recipe CONFIG.toml.

    The recipe says which model, what data, and which stages. What comes out is a folder that
    MMESH_ENCODER_MODEL serves as it is. An interrupted run goes on by the same command.
    """
    if dry_run and restart:
        raise click.UsageError("--dry-run trains nothing, and --restart deletes what was trained")
    try:
        from mmesh.training.processes import joined
        from mmesh.training.results import results_table
        from mmesh.training.stages import Run
    except ImportError as error:
        raise click.ClickException(str(not_importable(error))) from None
    from mmesh.training.recipe import read_recipe

    try:
        recipe = read_recipe(config)
        with joined(recipe.device) as processes, progress_bar() as bar:
            watcher = _Bar(bar, recipe.out) if processes.is_first else _Silent()
            run = Run(recipe, watcher, restart=restart, processes=processes)
            if dry_run:
                estimates = run.estimate()
            else:
                rows = run.run()
            watcher.close()
    except TrainingError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        errors().print("interrupted; the same command goes on from the last checkpoint")
        raise
    if not processes.is_first:
        return
    if dry_run:
        _print_estimates(estimates)
        return
    console().print(table(*results_table(rows)))
    console().print(f"serve it: MMESH_ENCODER_MODEL={recipe.result}", soft_wrap=True)


class _Silent:
    """What the other processes of a run say: the same as the first, so nothing."""

    def say(self, line: str) -> None:
        """Say nothing."""

    def stage(self, name: str, steps: int, done: int) -> None:
        """Say nothing."""

    def note(self, step: Step) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Say nothing."""


class _Bar:
    """A bar for each stage, with the loss; TensorBoard gets the same where it is installed."""

    def __init__(self, bar: Progress, out: Path) -> None:
        self._bar, self._out = bar, out
        self._task: TaskID | None = None
        self._name, self._smoothed = "", math.nan
        self._events: Any = None

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._bar.console.print(line, soft_wrap=True)

    def stage(self, name: str, steps: int, done: int) -> None:
        """Begin another bar."""
        self.close()
        self._name, self._smoothed = name, math.nan
        self._task = self._bar.add_task(name, total=steps, completed=done)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._events = SummaryWriter(str(self._out / "events" / name))

    def note(self, step: Step) -> None:
        """Move it."""
        before = step.loss if math.isnan(self._smoothed) else self._smoothed
        self._smoothed = 0.9 * before + 0.1 * step.loss
        if self._task is not None:
            said = f"{self._name} loss {self._smoothed:.3f} right {step.accuracy:.2f}"
            self._bar.update(self._task, completed=step.step, description=said)
        if self._events is not None:
            for name in ("loss", "accuracy", "margin", "masked", "temperature", "rate"):
                self._events.add_scalar(name, getattr(step, name), step.step)

    def close(self) -> None:
        """Write what TensorBoard has not got yet."""
        if self._events is not None:
            self._events.close()
            self._events = None


def _print_estimates(estimates: list[dict[str, Any]]) -> None:
    import resource

    columns = ["stage", "steps", "tokens", "hours", "parameters that train", "of"]
    rows = [
        [
            one["stage"],
            one["steps"],
            f"{one['tokens']:,}",
            f"{one['hours']:.2f}",
            f"{one['trains']:,}",
            f"{one['parameters']:,}",
        ]
        for one in estimates
    ]
    console().print(table(columns, rows))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    console().print(f"memory at the measured batches: {peak:.1f} GiB on the CPU{_on_gpu()}")


def _on_gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return ""
    return f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB on the GPU"
