"""The training loop: steps with cached gradients, checkpoints, and refusals of what diverges."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mmesh.content import Role
from mmesh.errors import MmeshError
from mmesh.models.protocol import Prepared
from mmesh.training.cached_gradients import backward, random_state, set_random_state
from mmesh.training.checkpoints import Checkpoint, Checkpoints
from mmesh.training.contrast import Contrast, Temperature, contrast, false_negatives
from mmesh.training.errors import TrainingError
from mmesh.training.examples import Item, Lesson, Told
from mmesh.training.learners.learner import Learner
from mmesh.training.processes import ALONE, Processes
from mmesh.training.sampling import Sampler

_SMOOTHING, _SETTLED_STEPS = 0.98, 50


@dataclass(frozen=True, slots=True)
class Pace:
    """How a stage goes on, step by step."""

    steps: int
    learning_rate: float
    warmup: float = 0.1
    """Share of the steps in which the rate rises; it then falls linearly to zero."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Greatest norm of the gradients."""
    temperature: float = 0.05
    learn_temperature: bool = False
    chunk: int = 0
    """Inputs that are embedded with a graph at a time; 0 for the whole batch."""
    checkpoint_every: int = 100

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * max(0.0, (self.steps - step) / max(1, self.steps - rising))


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did."""

    step: int
    """From 1."""
    loss: float
    accuracy: float
    margin: float
    masked: int
    """False negatives that were taken out."""
    truncated: int
    """Inputs longer than the model reads."""
    temperature: float
    rate: float
    seconds: float


class Observer(Protocol):
    """Somebody who is told of each step."""

    def note(self, step: Step) -> None:
        """Take note of a step that was done."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch made ready: queries, positives, negatives."""

    inputs: Sequence[Prepared]
    """The share of this process."""
    total: int
    queries: int
    masked: Tensor
    lessons: list[Lesson]


class Training:
    """Trains a learner; `run` goes on from the last checkpoint of the same digest.

    Args:
        learner: what is trained.
        sampler: what each step shows.
        pace: how.
        folder: of checkpoints and the losses of each step.
        digest: names configuration and data.
        seed: of what is dropped out.
        processes: that share the work; each has a learner of its own, which begins alike.
    """

    def __init__(
        self,
        learner: Learner,
        sampler: Sampler,
        pace: Pace,
        folder: Path,
        digest: str,
        seed: int = 0,
        processes: Processes = ALONE,
    ) -> None:
        self._processes = processes
        self._learner, self._sampler, self._pace = learner, sampler, pace
        self._folder, self._digest, self._seed = folder, digest, seed
        self._checkpoints = Checkpoints(folder)
        self._temperature = Temperature(pace.temperature, learned=pace.learn_temperature)
        modules = torch.nn.ModuleDict(
            {"learner": learner.network, "temperature": self._temperature}
        )
        self._parameters = {
            name: one for name, one in modules.named_parameters() if one.requires_grad
        }
        self._shared = [one for one in learner.network.parameters() if one.requires_grad]
        """Whose gradients are sums over processes; each has all of the temperature's."""
        if not self._parameters:
            raise TrainingError("nothing of the model is to be trained")
        self._optimiser = torch.optim.AdamW(
            self._parameters.values(), lr=0.0, weight_decay=pace.weight_decay
        )
        self._smoothed, self._best = math.nan, math.inf

    def run(self, *observers: Observer) -> int:
        """Do the steps that are left; return how many were done before.

        Raises:
            TrainingError: the loss diverges, an input cannot be read, or the disk is full; the
                last checkpoint is kept.
        """
        begun = self._resume()
        self._learner.network.train()
        losses = self._losses_of(begun)
        with ThreadPoolExecutor(1, "batches") as pool, losses.open("a") as file:
            coming: Future[_Batch] = pool.submit(self._batch, begun)
            for number in range(begun, self._pace.steps):
                batch = coming.result()
                if number + 1 < self._pace.steps:
                    coming = pool.submit(self._batch, number + 1)
                done = self._step(number, batch)
                file.write(json.dumps(asdict(done)) + "\n")
                file.flush()
                for one in observers:
                    one.note(done)
                if (number + 1) % self._pace.checkpoint_every == 0:
                    self._save(number + 1)
        self._learner.network.eval()
        return begun

    def measure(self) -> tuple[float, int]:
        """Return the seconds and tokens of one step, whose gradients are thrown away."""
        batch = self._batch(0)
        self._learner.network.train()  # in which layers are computed again, where that is asked for
        began = time.monotonic()
        self._contrast(batch)
        self._optimiser.zero_grad()
        self._learner.network.eval()
        return time.monotonic() - began, sum(one.cost for one in batch.inputs)

    def _resume(self) -> int:
        torch.manual_seed(self._seed + self._processes.rank)
        found = self._checkpoints.last(self._digest)
        if found is None:
            return 0
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(found.parameters[name])
        self._optimiser.load_state_dict(found.optimiser)
        set_random_state(found.random[self._processes.rank % len(found.random)])
        return found.step

    def _losses_of(self, begun: int) -> Path:
        """Return the file of losses, without those of steps that will be done again."""
        if not self._processes.is_first:
            return Path(os.devnull)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "steps.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        part = path.with_name(f".{path.name}.part")
        part.write_text("".join(lines[:begun]))
        os.replace(part, path)
        return path

    def _save(self, step: int) -> None:
        parameters = {name: one.detach().cpu() for name, one in self._parameters.items()}
        state, random = self._optimiser.state_dict(), self._processes.lists(random_state())
        made = Checkpoint(step, self._digest, parameters, state, random)
        self._processes.alone(lambda: self._checkpoints.save(made))

    def _step(self, number: int, batch: _Batch) -> Step:
        began = time.monotonic()
        rate = self._pace.rate(number)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad()
        found = self._contrast(batch)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._pace.clip)
        loss = float(found.loss.detach())
        self._check(number, loss, float(norm), batch)
        self._optimiser.step()
        return Step(
            number + 1,
            loss,
            found.accuracy,
            found.margin,
            int(batch.masked.sum()),
            self._processes.total(sum(one.truncated for one in batch.inputs)),
            1 / float(self._temperature.scale.detach()),
            rate,
            time.monotonic() - began,
        )

    def _contrast(self, batch: _Batch) -> Contrast:
        """Add the gradients of a batch; inputs of like length share a chunk."""
        order = sorted(
            range(len(batch.inputs)),
            key=lambda place: (batch.inputs[place].group, batch.inputs[place].cost),
        )
        back = torch.tensor(order).argsort()

        def gather(rows: Tensor) -> Tensor:
            return self._processes.gathered(rows[back.to(rows.device)], batch.total)

        def share(rows: Tensor) -> Tensor:
            own = rows[self._processes.rank :: self._processes.count]
            return own[order]

        def loss_of(rows: Tensor) -> tuple[Tensor, Contrast]:
            masked, scale = batch.masked.to(rows.device), self._temperature.scale.to(rows.device)
            found = contrast(rows[: batch.queries], rows[batch.queries :], masked, scale)
            return found.loss, found

        inputs = [batch.inputs[place] for place in order]
        found = backward(self._learner.embed, inputs, loss_of, self._pace.chunk, gather, share)
        self._processes.sum_gradients(self._shared)
        return found

    def _check(self, number: int, loss: float, norm: float, batch: _Batch) -> None:
        """Refuse what is not finite, and a loss that rises far above what it was, and chance."""
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise TrainingError(
                f"step {number + 1}: the loss is {loss} and the norm of its gradients {norm}; "
                "lower the learning rate, or compute in float32. The last checkpoint is kept"
            )
        before = self._smoothed if math.isfinite(self._smoothed) else loss
        self._smoothed = _SMOOTHING * before + (1 - _SMOOTHING) * loss
        if number < _SETTLED_STEPS:
            return
        self._best = min(self._best, self._smoothed)
        chance = math.log(max(2, batch.total - batch.queries))
        if self._smoothed > 2 * self._best and self._smoothed > chance:
            raise TrainingError(
                f"step {number + 1}: the loss diverges, from {self._best:.3f} to "
                f"{self._smoothed:.3f}, which is worse than chance; lower the learning rate. The "
                "last checkpoint is kept"
            )

    def _batch(self, step: int) -> _Batch:
        lessons = self._sampler.lessons(step)
        queries = [_told(lesson, lesson.example.query) for lesson in lessons]
        positives = [_told(lesson, lesson.positive) for lesson in lessons]
        negatives = [_told(lesson, item) for lesson in lessons for item in lesson.negatives]
        candidates = [*positives, *negatives]
        owners = [*lessons, *(lesson for lesson in lessons for _ in lesson.negatives)]
        everything = [(*one, Role.QUERY) for one in zip(lessons, queries, strict=True)]
        everything += [(*one, Role.CANDIDATE) for one in zip(owners, candidates, strict=True)]
        inputs = [self._prepared(*one) for one in self._processes.share(everything)]
        masked = false_negatives(lessons, queries, candidates)
        return _Batch(inputs, len(everything), len(queries), masked, list(lessons))

    def _prepared(self, lesson: Lesson, told: Told, role: Role) -> Prepared:
        instruction = lesson.example.instruction if role is Role.QUERY else ""
        try:
            return self._learner.prepare(told.content, role, instruction)
        except MmeshError as error:
            raise TrainingError(f"{_place(lesson, told.item)}: {error.message}") from error


def _told(lesson: Lesson, item: Item) -> Told:
    try:
        return Told.of(item)
    except OSError as error:
        reason = error.strerror or error
        raise TrainingError(f"{_place(lesson, item)}: {item.image}: {reason}") from error


def _place(lesson: Lesson, item: Item) -> str:
    named = f" (candidate {item.id!r})" if item.id else ""
    return f"{lesson.example.where or lesson.example.id}{named}"


def read_losses(folder: Path) -> Sequence[dict[str, Any]]:
    """Return what each step of a stage did."""
    path = folder / "steps.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]
