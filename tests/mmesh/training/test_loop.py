"""The loop learns, goes on exactly where it stopped, and refuses what diverges."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")

from mmesh.training.checkpoints import Checkpoint, Checkpoints  # noqa: E402
from mmesh.training.errors import TrainingError  # noqa: E402
from mmesh.training.loop import Pace, Step, Training, read_losses  # noqa: E402
from mmesh.training.sampling import Sampler  # noqa: E402
from mmesh.training.sources import Source, load  # noqa: E402

pytestmark = pytest.mark.training


class Stopped(Exception):
    """As a kill, from the outside."""


class StopAt:
    def __init__(self, step: int) -> None:
        self._step = step

    def note(self, step: Step) -> None:
        if step.step == self._step:
            raise Stopped


@pytest.fixture
def training(bag_of_words, pairs_file, tmp_path):
    sources = {
        "a": Source(pairs_file(60)),
        "b": Source(pairs_file(50, "b.jsonl", instruction="do")),
    }
    examples = {name: load(source).examples for name, source in sources.items()}

    def make(folder: str, *, learner=None, digest: str = "d", **pace: object) -> Training:
        learner = learner or bag_of_words()
        sampler = Sampler(examples, {"a": 2, "b": 1}, 16, 0, seed=5)
        chosen = {"steps": 40, "learning_rate": 0.05, "checkpoint_every": 10, "chunk": 7} | pace
        return Training(learner, sampler, Pace(**chosen), tmp_path / folder, digest, seed=9)

    make.folder = tmp_path  # type: ignore[attr-defined]
    return make


def test_the_loss_falls_below_chance_and_positives_are_found(training) -> None:
    training("run", steps=120).run()
    steps = read_losses(training.folder / "run")
    assert steps[0]["loss"] > math.log(16) * 0.5
    assert sum(one["loss"] for one in steps[-10:]) / 10 < 0.4 * math.log(16)
    assert steps[-1]["accuracy"] > 0.6


def test_a_run_that_was_stopped_goes_on_as_if_it_never_was(training, bag_of_words) -> None:
    whole, parts = bag_of_words(), bag_of_words()
    options = {"learn_temperature": True}
    training("whole", learner=whole, **options).run()
    with pytest.raises(Stopped):
        training("parts", learner=parts, **options).run(StopAt(27))
    again = bag_of_words(seed=77)
    assert training("parts", learner=again, **options).run() == 20
    for one, other in zip(whole.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, other)
    curves = [
        [
            {name: value for name, value in step.items() if name != "seconds"}
            for step in read_losses(training.folder / folder)
        ]
        for folder in ("whole", "parts")
    ]
    assert curves[0] == curves[1]
    assert [one["step"] for one in curves[1]] == list(range(1, 41))


def test_a_chunk_changes_memory_and_not_what_is_learned(training, bag_of_words) -> None:
    learners = [bag_of_words(dropout=0.0), bag_of_words(dropout=0.0)]
    for chunk, learner in zip((0, 5), learners, strict=True):
        training(f"chunk-{chunk}", learner=learner, chunk=chunk, steps=10).run()
    first, second = (next(iter(one.network.parameters())) for one in learners)
    assert torch.allclose(first, second, atol=1e-6)


def test_what_is_not_finite_is_refused_and_the_last_checkpoint_kept(training, bag_of_words) -> None:
    learner = bag_of_words()
    embed, calls = learner.embed, []

    def broken(inputs):
        calls.append(1)
        rows = embed(inputs)
        return rows * math.nan if len(calls) > 200 else rows

    learner.embed = broken
    with pytest.raises(TrainingError, match=r"the loss is nan.*checkpoint is kept"):
        training("nan", learner=learner).run()
    kept = Checkpoints(training.folder / "nan").last("d")
    assert kept is not None
    assert kept.step >= 10
    assert all(torch.isfinite(one).all() for one in kept.parameters.values())


def test_a_loss_that_rises_above_chance_is_refused(training, bag_of_words) -> None:
    learner = bag_of_words(dropout=0.0)
    embed, calls = learner.embed, []

    def drifting(inputs):
        calls.append(1)
        rows = embed(inputs)
        if len(calls) < 100:
            return rows
        turned = rows * torch.linspace(-1, 1, len(rows))[:, None]  # positives score lowest
        return torch.nn.functional.normalize(turned, dim=1)

    learner.embed = drifting
    with pytest.raises(TrainingError, match="diverges"):
        training("diverges", learner=learner, steps=400, chunk=0, temperature=0.01).run()


def test_a_full_disk_is_told_and_the_checkpoints_before_are_kept(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path)
    small = Checkpoint(1, "d", {"w": torch.zeros(4)}, {}, [])
    checkpoints.save(small)
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    os.symlink("/dev/full", tmp_path / "step-00000002.part")
    with pytest.raises(TrainingError, match=r"disk is full.*goes on from step-00000001.pt"):
        checkpoints.save(Checkpoint(2, "d", {"w": torch.zeros(1 << 16)}, {}, []))
    last = checkpoints.last("d")
    assert last is not None
    assert last.step == 1


def test_a_torn_checkpoint_is_passed_over(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(Checkpoint(step, "d", {"w": torch.zeros(4)}, {}, []))
    torn = tmp_path / "step-00000002.pt"
    torn.write_bytes(torn.read_bytes()[:100])
    last = checkpoints.last("d")
    assert last is not None
    assert last.step == 1


def test_checkpoints_of_another_run_are_refused(training) -> None:
    training("run").run()
    with pytest.raises(TrainingError, match="--restart"):
        training("run", digest="other").run()


def test_an_epoch_without_a_batch_is_refused(pairs_file) -> None:
    examples = {"a": load(Source(pairs_file(3))).examples}
    with pytest.raises(TrainingError, match="an epoch would be empty"):
        Sampler(examples, {"a": 1}, 16, 0, seed=0)


def test_an_input_that_cannot_be_read_is_named(training, bag_of_words) -> None:
    from mmesh.errors import InvalidField

    learner = bag_of_words()

    def refuse(content, role, instruction):
        raise InvalidField("content", "is longer than the model reads")

    learner.prepare = refuse
    with pytest.raises(TrainingError, match=r"pairs.jsonl:\d+: content is longer"):
        training("refused", learner=learner).run()
