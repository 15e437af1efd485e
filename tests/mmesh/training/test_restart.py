"""What `mmesh train --restart` deletes: what the run did, once all data are read, and no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmesh.cli.commands.train import train
from mmesh.training.errors import TrainingError
from mmesh.training.recipe import read_recipe

RECIPE = """
model = "{model}"
out = "runs/pets"
{more}
[data.own]
path = "{path}"
{held_out}
[[stages]]
name = "one"
data = {{ own = 1 }}
steps = 1
batch = 8
"""
PARTS = ("pets", "stages/one", "base", "work/one")


@pytest.fixture
def recipe(tmp_path, pairs_file) -> Callable[..., Path]:
    """Write a recipe whose run was done before, as another one was beside it."""
    pairs_file(20)
    for folder in (*(f"pets/{part}" for part in PARTS), "cats"):
        (tmp_path / "runs" / folder).mkdir(parents=True)
        (tmp_path / "runs" / folder / "weights.bin").write_text("of ten hours")
    (tmp_path / "runs/pets/pets/MODEL_CARD.md").write_text("# pets")

    def write(
        path: str = "pairs.jsonl", more: str = "", held_out: str = "", model: str = "lite"
    ) -> Path:
        file = tmp_path / "recipe.toml"
        file.write_text(RECIPE.format(path=path, more=more, held_out=held_out, model=model))
        return file

    return write


def left(root: Path) -> int:
    return len(list((root / "runs").rglob("weights.bin")))


def test_a_dry_run_does_not_restart(recipe, tmp_path) -> None:
    done = CliRunner().invoke(train, [str(recipe()), "--restart", "--dry-run"])
    assert (done.exit_code, left(tmp_path)) == (2, 5)
    assert "--dry-run trains nothing" in done.output


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/b", "../cats", "a\\\\b", "base"])
def test_a_name_that_is_no_folder_of_the_run_is_refused(recipe, name) -> None:
    with pytest.raises(TrainingError, match="a model cannot be called"):
        read_recipe(recipe(more=f'name = "{name}"'))


@pytest.mark.parametrize("path", ["runs/pets/pets", "runs/pets/work/pairs.jsonl"])
def test_data_where_the_run_writes_are_refused(recipe, path) -> None:
    with pytest.raises(TrainingError, match=r"data\.own: the run itself writes where"):
        read_recipe(recipe(path))
    with pytest.raises(TrainingError, match=r"held_out\.own: the run itself writes where"):
        read_recipe(recipe(held_out=f'[held_out.own]\npath = "{path}"'))


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": "tpyo.jsonl"},
        {"held_out": '[held_out.own]\npath = "tpyo.jsonl"'},
        {"held_out": '[held_out.own]\npath = "broken.jsonl"'},
    ],
)
def test_data_that_cannot_be_read_cost_nothing_of_what_was_done(recipe, tmp_path, wrong) -> None:
    pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
    (tmp_path / "broken.jsonl").write_text('{"query": "q"}\n')
    done = CliRunner().invoke(train, [str(recipe(**wrong)), "--restart"])
    assert (done.exit_code, left(tmp_path)) == (1, 5), done.output
    assert ".jsonl" in done.output


def test_a_model_that_is_not_there_costs_nothing_of_what_was_done(recipe, tmp_path) -> None:
    pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
    done = CliRunner().invoke(train, [str(recipe(model="tpyo")), "--restart"])
    assert (done.exit_code, left(tmp_path)) == (1, 5), done.output
    assert "tpyo" in done.output


def test_a_model_beside_the_recipe_is_found_from_anywhere(recipe, tmp_path, monkeypatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir("/")
    assert read_recipe(recipe(model="mine")).model == str(tmp_path / "mine")
    assert read_recipe(recipe(model="hf:mine/mine")).model == "hf:mine/mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_restart_that_is_stopped_leaves_nothing_that_counts_as_done(
    recipe, tmp_path, monkeypatch, error
) -> None:
    pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
    from mmesh.training import stages

    def stop(*_: object, **__: object) -> None:
        raise error

    class Quiet:
        def say(self, line: str) -> None:
            pass

    results = tmp_path / "runs/pets/results.json"
    results.write_text("[]")
    run = stages.Run(read_recipe(recipe()), Quiet(), restart=True)
    monkeypatch.setattr(stages.shutil, "rmtree", stop)
    with pytest.raises((KeyboardInterrupt, TrainingError)):
        run.run()
    assert not results.exists()


def test_the_model_that_it_begins_with_is_not_deleted(recipe, tmp_path) -> None:
    pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
    model = tmp_path / "runs/pets/stages/one"
    done = CliRunner().invoke(train, [str(recipe(model=str(model))), "--restart"])
    assert (done.exit_code, left(tmp_path)) == (1, 5)
    assert "--restart would delete the model" in done.output


@pytest.mark.parametrize("options", [[], ["--restart"]])
def test_a_result_does_not_replace_what_is_none(recipe, tmp_path, options) -> None:
    """Such as the folder of another run."""
    pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
    (tmp_path / "runs/pets/pets/MODEL_CARD.md").unlink()
    done = CliRunner().invoke(train, [str(recipe()), *options])
    assert (done.exit_code, left(tmp_path)) == (1, 5), done.output
    assert "pets is there and no trained model; give another `name`" in " ".join(
        done.output.split()
    )


def test_a_restart_deletes_what_the_run_did_and_no_more(recipe, tmp_path, monkeypatch) -> None:
    pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
    from mmesh.training import stages

    class Reached(Exception):
        pass

    def stop(run: stages.Run) -> Path:
        raise Reached

    class Quiet:
        def say(self, line: str) -> None:
            pass

    monkeypatch.setattr(stages.Run, "_base", stop)
    run = stages.Run(read_recipe(recipe()), Quiet(), restart=True)
    assert left(tmp_path) == 5
    with pytest.raises(Reached):
        run.run()
    assert [path.parent.name for path in (tmp_path / "runs").rglob("weights.bin")] == ["cats"]
