"""Runs in a folder where another one was before, with held-out data that is bad, on a full disk.

Costs 10 s, most of it the import of torch.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
if find_spec("peft") is None:  # importing it here would be too early, see mmesh.models.compat
    pytest.skip("peft is absent: run `make setup-training`", allow_module_level=True)
pytest.importorskip("transformers", reason="transformers is absent: run `make setup-training`")

from mmesh.testing.tiny_models import build_tiny_sentence_transformer
from mmesh.training.errors import TrainingError
from mmesh.training.recipe import read_recipe
from mmesh.training.stages import Run

pytestmark = [pytest.mark.training, pytest.mark.models]
WEIGHTS = "model.safetensors"
RECIPE = """
model = "{model}"
out = "run"
threads = 1
[data.pairs]
path = "pairs.jsonl"
{held_out}
[[stages]]
name = "one"
data = {{ pairs = 1 }}
steps = 2
batch = 8
checkpoint_every = 1
"""


class Listener:
    """A watcher that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def stage(self, name: str, steps: int, done: int) -> None:
        pass

    def note(self, step: object) -> None:
        pass


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Two tiny models of the same shapes."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("ab"):
        build_tiny_sentence_transformer(root / name, seed)
    return root


@pytest.fixture
def open_run(tmp_path, pairs_file) -> Callable[..., Run]:
    pairs_file(24)

    def make(model: Path, held_out: str = "", listener: Listener | None = None) -> Run:
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(RECIPE.format(model=model, held_out=held_out))
        return Run(read_recipe(recipe), listener or Listener())

    return make


def test_the_base_of_a_dry_run_is_not_taken_for_that_of_another_model(
    open_run, models, tmp_path
) -> None:
    open_run(models / "a").estimate()
    assert (tmp_path / "run/base" / WEIGHTS).read_bytes() == (models / "a" / WEIGHTS).read_bytes()
    open_run(models / "b").run()
    assert (tmp_path / "run/base" / WEIGHTS).read_bytes() == (models / "b" / WEIGHTS).read_bytes()
    assert not list((tmp_path / "run/run").rglob(".*"))


def test_a_run_does_not_go_on_with_the_model_of_another(open_run, models, tmp_path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(models / "a", mine)
    assert [row.stage for row in open_run(mine).run()] == ["base", "one"]
    with pytest.raises(TrainingError, match=r"holds another model.*--restart"):
        open_run(models / "b").run()
    shutil.copyfile(models / "b" / WEIGHTS, mine / WEIGHTS)
    for again in (open_run(mine).run, open_run(mine).estimate):
        with pytest.raises(TrainingError, match=r"holds another model.*--restart"):
            again()
    shutil.rmtree(mine)  # what was copied at the beginning is enough
    assert [row.stage for row in open_run(mine).run()] == ["base", "one"]


def test_a_broken_row_that_is_held_out_is_told_before_anything_trains(
    open_run, models, tmp_path
) -> None:
    (tmp_path / "held.jsonl").write_text('{"query": "q", "positive": "p"}\n{"query": "q"}\n')
    with pytest.raises(TrainingError, match=r"held\.jsonl:2: has no positive"):
        open_run(models / "a", '[held_out.notes]\npath = "held.jsonl"')
    assert not (tmp_path / "run").exists()


def test_a_positive_longer_than_the_model_reads_is_cut_and_told(open_run, models, tmp_path) -> None:
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for number in range(8):
            positive = "a harbour " * 500 if number == 5 else f"a harbour {number}"
            file.write(json.dumps({"query": f"zu{number}", "positive": positive}) + "\n")
    listener = Listener()
    open_run(models / "a", listener=listener).run()
    assert "one: 2 inputs were longer than the model reads" in listener.said  # in each step one


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_ends_a_run_which_goes_on_when_there_is_room(
    open_run, models, tmp_path
) -> None:
    work = tmp_path / "run/work/one"
    work.mkdir(parents=True)
    os.symlink("/dev/full", work / "step-00000002.part")
    with pytest.raises(TrainingError, match=r"disk is full.*goes on from step-00000001\.pt"):
        open_run(models / "a").run()
    assert not (tmp_path / "run/run").exists()
    os.symlink("/dev/full", tmp_path / "run/.results.json.new")
    with pytest.raises(TrainingError, match=r"No space left on device; what was done is kept"):
        open_run(models / "a").run()
    (tmp_path / "run/.results.json.new").unlink()
    assert [row.stage for row in open_run(models / "a").run()] == ["base", "one"]
