"""When a run goes on with what was done, trains again, or only measures again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mmesh.training import held_out
from mmesh.training.errors import TrainingError
from mmesh.training.inputs import Inputs, read_inputs
from mmesh.training.recipe import Recipe, read_recipe
from mmesh.training.results import Row, read_rows
from mmesh.training.sources import load

RECIPE = """
out = "run"
threads = 1
[data.own]
path = "own"
[held_out.test]
path = "{held}"
[evaluate]
mesh = {mesh}
[[stages]]
name = "{first}"
data = {{ own = 1 }}
steps = {steps}
batch = 2
[[stages]]
name = "mined"
data = {{ own = 1 }}
steps = 1
batch = 2
mine = {mine}
negatives = 1
"""


@pytest.fixture
def folder(tmp_path, pictures, pairs_file) -> Path:
    """A data set with a picture, and two files of pairs that are held out."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "cat.png").write_bytes(pictures.png(1))
    pool = [{"id": "c0", "image": "cat.png"}, *({"id": f"c{n}", "text": f"a {n}"} for n in (1, 2))]
    queries = [{"id": f"q{n}", "text": f"what {n}", "relevant": [f"c{n}"]} for n in range(3)]
    for name, rows in (("pool", pool), ("queries", queries)):
        (own / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs_file(4, "easy.jsonl")
    pairs_file(5, "hard.jsonl")
    return tmp_path


@pytest.fixture
def recipe(folder) -> Callable[..., Recipe]:
    def read(
        first: str = "first",
        steps: int = 1,
        mine: bool = True,
        held: str = "easy.jsonl",
        mesh: bool = False,
        folder: Path = folder,
    ) -> Recipe:
        flags = {"mine": str(mine).lower(), "mesh": str(mesh).lower()}
        said = RECIPE.format(first=first, steps=steps, held=held, **flags)
        (folder / "recipe.toml").write_text(said)
        return read_recipe(folder / "recipe.toml")

    return read


def inputs(recipe: Recipe) -> Inputs:
    return read_inputs(recipe, lambda line: None)


def digest(recipe: Recipe) -> str:
    return inputs(recipe).stage_digests(recipe, "base")["mined"]


def test_a_stage_is_another_when_that_which_mines_for_it_is(recipe) -> None:
    mined = [digest(recipe(steps=steps)) for steps in (1, 1, 2)]
    assert mined[0] == mined[1] != mined[2]
    plain = [digest(recipe(steps=steps, mine=False)) for steps in (1, 2)]
    assert plain[0] == plain[1]  # both begin with the base


def test_a_stage_is_another_when_what_it_is_mined_from_is(recipe, folder) -> None:
    mined, plain = digest(recipe()), digest(recipe(mine=False))
    with (folder / "own/pool.jsonl").open("a") as pool:
        pool.write('{"id": "c9", "text": "like what 1"}\n')
    assert digest(recipe()) != mined
    assert digest(recipe(mine=False)) == plain


def test_data_are_the_same_wherever_they_lie(recipe, folder, tmp_path, monkeypatch) -> None:
    def digests(recipe: Recipe) -> list[str]:
        found = inputs(recipe)
        held = found.measuring_digest(recipe)
        return [*found.stage_digests(recipe, "base").values(), held, found.data["own"].digest()]

    absolute = digests(recipe())
    monkeypatch.chdir(folder)
    assert digests(recipe(folder=Path())) == absolute
    shutil.copytree(folder, folder / "moved", ignore=shutil.ignore_patterns("moved"))
    assert digests(recipe(folder=folder / "moved")) == absolute


def test_negatives_that_were_mined_are_found_from_another_folder(
    recipe, folder, monkeypatch
) -> None:
    monkeypatch.chdir(folder)
    here, there = (recipe(folder=path).data["own"] for path in (Path(), folder))
    examples = load(here).examples
    mined = [replace(one, negatives=examples[0].positives) for one in examples]
    held_out.write_mined(folder / "mined.json", mined, here.root)
    monkeypatch.chdir("/")
    (negative,) = held_out.read_mined(folder / "mined.json", examples, there.root)[1].negatives
    assert negative.content().images


def test_figures_are_of_the_data_and_the_way_of_measuring_that_the_recipe_says(recipe) -> None:
    digests = [
        inputs(one).measuring_digest(one)
        for one in (recipe(), recipe(steps=9), recipe(held="hard.jsonl"), recipe(mesh=True))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


class Quiet:
    """A watcher that remembers nothing."""

    def say(self, line: str) -> None:
        """Take a line."""


@pytest.fixture
def go(folder, monkeypatch) -> Callable[[Recipe], tuple[list[Row], list[str]]]:
    """Run all but the models; return the rows and what was done for them."""
    pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
    from mmesh.training import stages

    done: list[str] = []
    (folder / "away").write_text("")

    class Run(stages.Run):
        def _base(self) -> Path:
            (folder / "run/base").mkdir(parents=True, exist_ok=True)
            return folder / "run/base"

        def _base_digest(self) -> str:
            return "base"

        def _train(self, stage, digest: str) -> Row:
            done.append(f"trains {stage.name}")
            (folder / "run/stages" / stage.name).mkdir(parents=True)
            return Row(stage.name, 1, digest, 1.0, {})

        def _measured(self, of: Path):
            if of.name in (folder / "away").read_text():
                raise TrainingError("the mesh is away")
            path = self._recipe.held_out["test"].path
            done.append(f"measures {of.name} on {path.stem}")
            names = (*held_out.METRICS, "queries", "pool", "left out")
            return {"test": {name: dict.fromkeys(("value", "low", "high"), 0.5) for name in names}}

    def run(recipe: Recipe) -> tuple[list[Row], list[str]]:
        done.clear()
        return Run(recipe, Quiet()).run(), list(done)

    return run


def test_other_held_out_data_are_measured_and_nothing_is_trained(recipe, go) -> None:
    rows, done = go(recipe())
    assert [row.stage for row in rows] == ["base", "first", "mined"]
    assert len(done) == 5
    assert go(recipe()) == (rows, [])
    rows, done = go(recipe(held="hard.jsonl"))
    assert done == [f"measures {name} on hard" for name in ("base", "first", "mined")]
    assert len({row.measured for row in rows}) == 1


def test_a_stage_that_was_trained_is_not_again_when_measuring_failed(recipe, go, folder) -> None:
    (folder / "away").write_text("first")
    with pytest.raises(TrainingError, match="the mesh is away"):
        go(recipe())
    (folder / "away").write_text("")
    _, done = go(recipe())
    assert done == ["measures first on easy", "trains mined", "measures mined on easy"]


def test_a_run_whose_mined_stage_would_be_another_is_refused_before_it_trains(
    recipe, go, folder
) -> None:
    go(recipe())
    with pytest.raises(TrainingError, match=r"'mined' was done with another recipe.*--restart"):
        go(recipe(first="longer", steps=900))
    assert not (folder / "run/stages/longer").exists()


def test_a_stage_that_the_recipe_no_longer_has_gives_no_figures(recipe, go, folder) -> None:
    go(recipe(mine=False))
    rows, _ = go(recipe(first="other", mine=False, held="hard.jsonl"))
    assert [row.stage for row in rows] == ["base", "other", "mined"]
    assert "first" in read_rows(folder / "run")  # kept, if the recipe has it again
    assert "| first |" not in (folder / "run/run/MODEL_CARD.md").read_text()
