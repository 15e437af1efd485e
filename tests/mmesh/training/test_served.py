"""Held-out data measured through a mesh that serves the model, beside exact search in the process.

Costs 30 s: three meshes start.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
if find_spec("peft") is None:  # importing it here would be too early, see mmesh.models.compat
    pytest.skip("peft is absent: run `make setup-training`", allow_module_level=True)
pytest.importorskip("transformers", reason="transformers is absent: run `make setup-training`")

from mmesh.training import held_out, served
from mmesh.training.errors import TrainingError
from mmesh.training.learners import lite
from mmesh.training.recipe import read_recipe
from mmesh.training.sources import Source
from mmesh.training.stages import Run

pytestmark = [
    pytest.mark.training,
    pytest.mark.models,
    pytest.mark.processes,
    pytest.mark.timeout(400),
]
THINGS = "harbour glacier violin tractor orchid comet bakery lantern canyon piano".split()  # noqa: SIM905
RECIPE = """
model = "lite"
out = "run"
threads = 1
[data.pairs]
path = "pairs.jsonl"
[held_out.pairs]
path = "held.jsonl"
[held_out.own]
path = "own"
[held_out.documents]
path = "beir"
[evaluate]
mesh = true
[[stages]]
name = "one"
data = { pairs = 1 }
steps = 2
batch = 8
learning_rate = 2e-3
"""


class Quiet:
    """A watcher that remembers what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def stage(self, name: str, steps: int, done: int) -> None:
        pass

    def note(self, step: object) -> None:
        pass


def jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_documents(folder: Path) -> None:
    """A data set of BEIR's format whose queries are documents."""
    texts = {f"d-{thing}": f"the {thing} of old" for thing in THINGS}
    others = {
        f"a-{thing}": f"the old {other}"
        for thing, other in zip(THINGS, THINGS[1:] + THINGS[:1], strict=True)
    }
    jsonl(folder / "corpus.jsonl", [{"_id": n, "text": t} for n, t in (texts | others).items()])
    jsonl(folder / "queries.jsonl", [{"_id": n, "text": t} for n, t in texts.items()])
    (folder / "qrels").mkdir()
    judged = "".join(f"d-{thing}\ta-{thing}\t1\n" for thing in THINGS)
    (folder / "qrels/test.tsv").write_text(judged)


@pytest.fixture
def recipe(tmp_path, pictures) -> Path:
    """Pairs of texts and of pictures without ids, and a data set of two tasks with pools."""
    for n, thing in enumerate(THINGS):
        (tmp_path / "own").mkdir(exist_ok=True)
        for folder in (tmp_path, tmp_path / "own"):
            (folder / f"{thing}.png").write_bytes(pictures.png(n))
    pairs: list[dict[str, object]] = [
        {"query": f"what of the {a}?", "instruction": "Find a note.", "positive": f"the {a}, a {b}"}
        for a, b in zip(THINGS, THINGS[1:] + THINGS[:1], strict=True)
    ] + [
        {
            "query": f"a {thing}",
            "instruction": "Find a picture.",
            "positive": {"image": f"{thing}.png"},
        }
        for thing in THINGS
    ]
    for name in ("pairs", "held"):
        jsonl(tmp_path / f"{name}.jsonl", pairs)
    pool: list[dict[str, object]] = [
        {"id": f"t-{thing}", "text": f"a drawing of a {thing}", "pool": "notes"} for thing in THINGS
    ] + [
        {"id": f"i-{thing}", "image": f"{thing}.png", "text": f"{thing}!", "pool": "shown"}
        for thing in THINGS
    ]
    jsonl(tmp_path / "own/pool.jsonl", pool)
    queries: list[dict[str, object]] = [
        {
            "id": f"q-{task}-{n}",
            "text": f"some {thing}",
            "task": task,
            "relevant": [f"{kind}-{thing}"],
        }
        for task, kind in (("notes", "t"), ("shown", "i"))
        for n, thing in enumerate(THINGS)
    ]
    jsonl(tmp_path / "own/queries.jsonl", queries)
    write_documents(tmp_path / "beir")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


def test_the_mesh_and_the_process_find_the_same_figures(recipe) -> None:
    read = read_recipe(recipe)
    rows = Run(read, Quiet()).run()
    assert [row.stage for row in rows] == ["base", "one"]
    for row, folder in zip(rows, (read.out / "base", read.out / "stages/one"), strict=True):
        model = lite.LiteModel(folder, 1)
        for name, source in read.held_out.items():
            ours = held_out.measure(model, source)
            assert row.figures[name].keys() == ours.keys()
            for metric, figure in ours.items():
                assert row.figures[name][metric] == pytest.approx(figure, abs=1e-6), (name, metric)
    figures = [figure["value"] for name in read.held_out for metric, figure in
               rows[0].figures[name].items() if metric in held_out.METRICS]  # fmt: skip
    assert len({round(value, 6) for value in figures} - {0.0, 1.0}) > 4  # they say something
    assert rows[0].figures != rows[1].figures
    assert not list((read.out / "work").glob(".mesh"))
    assert "through a mesh" in (read.result / "MODEL_CARD.md").read_text()


def test_a_picture_that_cannot_be_read_ends_the_measuring(recipe) -> None:
    broken = recipe.parent / "violin.png"
    broken.write_bytes(broken.read_bytes()[:60])
    held = {"pairs": held_out.read_held_out(Source(recipe.parent / "pairs.jsonl"))}
    with pytest.raises(TrainingError, match="cannot be read"):
        served.measure("lite", held, recipe.parent / "mesh", print)
    assert not (recipe.parent / "mesh").exists()


def test_a_recipe_that_measures_in_no_known_way_is_refused(recipe) -> None:
    recipe.write_text(RECIPE.replace("mesh = true", "cluster = true"))
    with pytest.raises(TrainingError, match=r"evaluate: 'cluster' is not known; known: mesh"):
        read_recipe(recipe)
