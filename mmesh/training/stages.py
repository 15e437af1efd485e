"""A training run: stage after stage, from one model's folder to the next, measured in between."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from mmesh.errors import MmeshError
from mmesh.models import hub
from mmesh.models.encoders.families import LITE, EncoderChoice, open_encoder
from mmesh.models.encoders.lite.model import Reading
from mmesh.models.protocol import EncoderModel
from mmesh.training import held_out, served
from mmesh.training.card import CARD, card
from mmesh.training.errors import TrainingError
from mmesh.training.examples import Example
from mmesh.training.inputs import read_inputs
from mmesh.training.learners import lite, towers
from mmesh.training.learners.adapters import count_parameters
from mmesh.training.learners.checkpointing import checkpoint_layers
from mmesh.training.learners.learner import Learner
from mmesh.training.loop import Observer, Pace, Training, read_losses
from mmesh.training.mining.drawing import Rules
from mmesh.training.processes import ALONE, Processes
from mmesh.training.recipe import BASE, STAGES, WORK, Recipe, Stage, lies_in
from mmesh.training.results import RESULTS, Figures, Row, read_rows, write_rows
from mmesh.training.sampling import Sampler

_ORIGIN = ".origin.json"
"""File of the base that says what it was made from; hidden, so that no copy of it has one."""
_OTHER_BASE = (
    "{} holds another model, or one that reads instructions otherwise; --restart begins anew"
)


class Watcher(Observer, Protocol):
    """Somebody who waits for a run."""

    def say(self, line: str) -> None:
        """Take a line for people."""

    def stage(self, name: str, steps: int, done: int) -> None:
        """Take note that a stage begins."""


class Run:
    """A run in the folder of its recipe; what is done is not done again.

    With `restart` it is: `run` deletes what was done, once all data are read.

    Raises:
        TrainingError: data are missing or broken.
    """

    def __init__(
        self,
        recipe: Recipe,
        watcher: Watcher,
        *,
        restart: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        self._recipe, self._watcher, self._out = recipe, watcher, recipe.out
        self._processes = processes
        self._restart = restart
        self._inputs = read_inputs(recipe, watcher.say)

    def run(self) -> list[Row]:
        """Do what is left of the run; return a row for the base and each stage.

        Raises:
            TrainingError: a stage cannot go on; what was done is kept.
        """
        try:
            return self._run()
        except MmeshError as error:
            raise TrainingError(error.message) from error
        except OSError as error:
            reason = error.strerror or error
            raise TrainingError(
                f"{error.filename or self._out}: {reason}; what was done is kept, "
                "and the same command goes on"
            ) from error

    def _run(self) -> list[Row]:
        alone = self._processes.alone
        alone(self._begin)
        rows, digests = read_rows(self._out), self._digests()
        for stage in self._recipe.stages:
            if stage.name in rows and self._folder(stage.name).is_dir():
                self._watcher.say(f"{stage.name}: done before")
            else:
                rows[stage.name] = self._train(stage, digests[stage.name])
                alone(partial(write_rows, self._out, rows))
            alone(partial(self._measure, rows, stage.name))
        found = [rows[name] for name in (BASE, *(stage.name for stage in self._recipe.stages))]
        alone(partial(self._publish, found))
        return found

    def _begin(self) -> None:
        """Check what was done before, write the base, and measure it."""
        self._check_result()
        if self._restart:
            self._delete()
        rows, base, digests = read_rows(self._out), self._base(), self._digests()
        if BASE in rows and rows[BASE].digest != digests[BASE]:
            raise TrainingError(_OTHER_BASE.format(base))
        self._check_done(rows, digests)
        rows.setdefault(BASE, Row(BASE, 0, digests[BASE], 0.0, {}))
        self._measure(rows, BASE)

    def _digests(self) -> Mapping[str, str]:
        return self._inputs.stage_digests(self._recipe, self._base_digest())

    def _check_result(self) -> None:
        """Refuse a result in the place of what no run left there, such as another run's folder."""
        result = self._recipe.result
        others = result.is_file() or (result.is_dir() and any(result.iterdir()))
        if others and not (result / CARD).is_file():
            raise TrainingError(f"{result} is there and no trained model; give another `name`")

    def _check_done(self, rows: Mapping[str, Row], digests: Mapping[str, str]) -> None:
        """Refuse to go on with a stage of another recipe, before any other is trained."""
        for stage in self._recipe.stages:
            if stage.name in rows and rows[stage.name].digest != digests[stage.name]:
                raise TrainingError(
                    f"the stage {stage.name!r} was done with another recipe or other data; "
                    "--restart begins anew"
                )

    def _measure(self, rows: dict[str, Row], name: str) -> None:
        """Give a row its figures, unless it has those of the same data, measured the same way."""
        measured = self._inputs.measuring_digest(self._recipe)
        if rows[name].measured != measured:
            figures = self._measured(self._folder(name))
            rows[name] = replace(rows[name], figures=figures, measured=measured)
            write_rows(self._out, rows)

    def _delete(self) -> None:
        """Delete what was done before.

        Raises:
            TrainingError: the model that it begins with would be deleted, too.
            FailedPrecondition: there is no such model.
        """
        written, model = self._recipe.written, Path(self._recipe.model)
        if model.exists() and any(lies_in(model, folder) for folder in written):
            raise TrainingError(f"--restart would delete the model {model}; copy it elsewhere")
        if self._recipe.model != LITE:
            hub.local_folder(self._recipe.model)  # or nothing could be done after it
        (self._out / RESULTS).unlink(missing_ok=True)  # first: it says what else is whole
        for folder in written:
            shutil.rmtree(folder, ignore_errors=True)
        self._restart = False

    def estimate(self) -> list[dict[str, Any]]:
        """Return, for each stage, steps, tokens, hours and parameters; trains nothing.

        One batch goes forth and back to be measured.
        """
        found = []
        for stage in self._recipe.stages:
            learner = self._learner(self._base(), stage)
            examples = {name: self._supposed(stage, name) for name in stage.data}
            sampler = self._sampler(stage, examples)
            steps = self._steps(stage, sampler)
            work = self._out / WORK / "estimate"
            training = Training(learner, sampler, _pace(stage, steps), work, "")
            training.measure()  # the first step takes longer than others
            seconds, tokens = training.measure()
            trains, all_of_them = count_parameters(learner.network)
            found.append(
                {
                    "stage": stage.name,
                    "steps": steps,
                    "tokens": steps * tokens,
                    "hours": steps * seconds / 3600,
                    "trains": trains,
                    "parameters": all_of_them,
                }
            )
        return found

    def _supposed(self, stage: Stage, name: str) -> list[Example]:
        """Return the examples of a stage; answers of others stand for negatives to be mined."""
        examples = self._inputs.data[name].examples
        if not stage.mine:
            return examples
        others = [one.positives[0] for one in examples]
        total = len(others)
        following = range(1, min(stage.negatives, total - 1) + 1)
        return [
            replace(one, negatives=tuple(others[(n + k) % total] for k in following))
            for n, one in enumerate(examples)
        ]

    # -- one stage

    def _train(self, stage: Stage, digest: str) -> Row:
        """Train a stage and save its model; all processes take part."""
        work = self._out / WORK / stage.name
        self._processes.alone(partial(self._examples, stage, digest))
        sampler = self._sampler(stage, self._examples(stage, digest))
        steps = self._steps(stage, sampler)
        learner = self._learner(self._folder(stage.begin), stage)
        training = Training(
            learner,
            sampler,
            _pace(stage, steps),
            work,
            digest,
            self._recipe.seed,
            self._processes,
        )
        self._watcher.stage(stage.name, steps, 0)
        training.run(self._watcher)
        self._processes.alone(partial(self._save, learner, stage))
        done = read_losses(work)
        cut = sum(step["truncated"] for step in done)
        if cut:
            self._watcher.say(f"{stage.name}: {cut} inputs were longer than the model reads")
        losses = [step["loss"] for step in done[-20:]]
        mean = sum(losses) / len(losses) if losses else 0.0  # a crash took what was not synced
        return Row(stage.name, steps, digest, mean, {})

    def _save(self, learner: Learner, stage: Stage) -> None:
        folder = self._folder(stage.name)
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        learner.save(part)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)

    def _examples(self, stage: Stage, digest: str) -> dict[str, list[Example]]:
        """Return the examples of a stage by data set; negatives that are mined are so once."""
        work = self._out / WORK / stage.name
        return {
            name: self._examples_of(stage, name, work / f"mined-{digest[:16]}-{name}.json")
            for name in stage.data
        }

    def _examples_of(self, stage: Stage, name: str, mined_file: Path) -> list[Example]:
        examples = self._inputs.data[name].examples
        if not stage.mine:
            return examples
        if mined_file.is_file():
            return held_out.read_mined(mined_file, examples, self._recipe.data[name].root)
        stages = [one.name for one in self._recipe.stages]
        before = stages[stages.index(stage.name) - 1] if stages[0] != stage.name else BASE
        self._watcher.say(f"{stage.name}: mining {name} with the model of {before}")
        rules = Rules(margin=stage.mine_margin, count=stage.negatives)
        model = self._serving(self._folder(before))
        source = self._recipe.data[name]
        mined, statistics = held_out.mine(model, source, examples, rules, self._recipe.seed)
        columns, table = statistics.table()
        for row in table:
            cells = zip(columns, row, strict=True)
            self._watcher.say("  " + ", ".join(f"{title} {cell}" for title, cell in cells))
        held_out.write_mined(mined_file, mined, source.root)
        return mined

    def _sampler(self, stage: Stage, examples: Mapping[str, list[Example]]) -> Sampler:
        return Sampler(
            examples, dict(stage.data), stage.batch, stage.negatives, self._recipe.seed, stage.mixed
        )

    def _steps(self, stage: Stage, sampler: Sampler) -> int:
        return stage.steps or sampler.steps_of(stage.epochs)

    def _learner(self, folder: Path, stage: Stage) -> Learner:
        learner = self._opened(folder, stage)
        if self._recipe.gradient_checkpointing:
            checkpoint_layers(learner.network)
        return learner

    def _opened(self, folder: Path, stage: Stage) -> Learner:
        recipe = self._recipe
        torch.manual_seed(recipe.seed)  # adapters begin with random numbers
        if lite.is_lite(folder):
            return lite.LiteLearner(folder, recipe.adapters, recipe.threads, stage.max_text_tokens)
        choice = EncoderChoice(
            str(folder),
            recipe.family,
            threads=recipe.threads,
            device=recipe.device,
            dtype=recipe.dtype,
            max_text_tokens=stage.max_text_tokens,
            compile="off",
        )
        return towers.open_learner(folder, recipe.adapters, choice)

    # -- models and figures

    def _base(self) -> Path:
        """Return the folder of the model that all begins with; write it at first use.

        Raises:
            TrainingError: it was made from another model, and stages have begun with it.
        """
        folder = self._out / BASE
        made_from = _read_origin(folder)
        origin = self._origin(made_from or {})
        if folder.is_dir():
            begun = bool(read_rows(self._out))
            if made_from == origin or (begun and made_from is None):
                return folder
            if begun:
                raise TrainingError(_OTHER_BASE.format(folder))
        part = folder.with_name(f".{BASE}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        if self._recipe.model == LITE:
            lite.write_base(part, self._reading())
        else:
            source = hub.local_folder(self._recipe.model)
            reads = self._recipe.reads_instructions and self._inputs.has_instructions
            towers.write_base(part, source, reads_instructions=reads)
        (part / _ORIGIN).write_text(json.dumps(origin) + "\n")
        shutil.rmtree(folder, ignore_errors=True)  # of another model, by a dry run say
        os.replace(part, folder)
        return folder

    def _origin(self, before: Mapping[str, str]) -> dict[str, str]:
        """Return what the base is made from, and how; `before` tells of files that are gone.

        A model of the hub is known by its name.
        """
        recipe, local = self._recipe, Path(self._recipe.model)
        reads = recipe.reads_instructions and self._inputs.has_instructions
        files = hub.fingerprint_of(local, BASE, ()) if local.is_dir() else before.get("files", "")
        reading = f"{reads} {self._reading()}"
        return {"model": recipe.model, "family": recipe.family, "reads": reading, "files": files}

    def _reading(self) -> Reading:
        if not self._recipe.reads_instructions or not self._inputs.has_instructions:
            return Reading()
        asked = self._inputs.has_instructions_of_pictures
        return Reading(True, lite.PICTURE_SHARE if asked else 0.0)

    def _folder(self, stage: str) -> Path:
        return self._out / BASE if stage == BASE else self._out / STAGES / stage

    def _serving(self, folder: Path) -> EncoderModel:
        recipe = self._recipe
        if lite.is_lite(folder):
            return lite.LiteModel(folder, recipe.threads)
        return open_encoder(
            EncoderChoice(
                str(folder),
                recipe.family,
                threads=recipe.threads,
                device=recipe.device,
                dtype=recipe.dtype,
                compile="off",
            )
        )

    def _measured(self, folder: Path) -> Figures:
        if not self._recipe.held_out:
            return {}
        self._watcher.say(f"measuring {folder.name}")
        held = self._inputs.held
        if self._recipe.evaluate.mesh:
            place = self._out / WORK / ".mesh"
            return served.measure(self._spelt(folder), held, place, self._watcher.say)
        model = self._serving(folder)
        return {name: held_out.measure_held_out(model, one) for name, one in held.items()}

    def _spelt(self, folder: Path) -> str:
        """Return what `mmesh up --encoder` takes to serve a model as `_serving` opens it."""
        recipe, settings = self._recipe, [f"threads={self._recipe.threads}"]
        if not lite.is_lite(folder):
            settings += [f"family={recipe.family}", f"device={recipe.device}"]
            settings += [f"dtype={recipe.dtype}", "compile=off"]
        return ",".join([str(folder.resolve()), *settings])

    # -- what is written down

    def _base_digest(self) -> str:
        recipe, folder = self._recipe, self._out / BASE
        parts = (recipe.model, recipe.family, recipe.reads_instructions, self._reading())
        return hub.fingerprint_of(folder, BASE, parts)

    def _publish(self, rows: list[Row]) -> None:
        """Copy the model of the last stage to where it is served from, with its card."""
        folder = self._recipe.result
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(self._folder(self._recipe.stages[-1].name), part)
        (part / CARD).write_text(card(self._recipe, self._inputs.data, rows), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)


def _read_origin(base: Path) -> dict[str, str] | None:
    try:
        found: dict[str, str] = json.loads((base / _ORIGIN).read_text())
    except (OSError, ValueError):
        return None
    return found


def _pace(stage: Stage, steps: int) -> Pace:
    names = ("learning_rate", "warmup", "weight_decay", "clip", "temperature",
             "learn_temperature", "chunk", "checkpoint_every")  # fmt: skip
    return Pace(steps, **{name: getattr(stage, name) for name in names})
