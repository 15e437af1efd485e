"""Recipes as they are read, and what is said of wrong ones."""

from __future__ import annotations

import pytest

from mmesh.training.errors import TrainingError
from mmesh.training.recipe import read_recipe
from mmesh.training.sources import Source, load

RECIPE = """
out = "run"
[data.a]
path = "a.jsonl"
[[stages]]
name = "one"
data = { a = 1 }
"""


ALL = """
out = "run"
seed = 0
threads = 1
device = "cpu"
reads_instructions = false
[adapters]
rank = 4
alpha = 32
dropout = 0.1
[evaluate]
mesh = true
[data.a]
path = "a"
kind = "own"
prompt = "random"
negatives = "a.parquet"
skip_broken = true
[held_out.a]
path = "a-test"
[[stages]]
name = "one"
data = { a = 0.5 }
epochs = 2
negatives = 2
mine = true
mine_margin = 1
warmup = 1
weight_decay = 0
chunk = 8
"""


def test_a_recipe_names_paths_beside_it(tmp_path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert recipe.data["a"].path == tmp_path / "a.jsonl"
    assert recipe.result == tmp_path / "run/run"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('name = "one"', 'name = "one"\nspeed = 3', "'speed' is not known"),
        ("{ a = 1 }", "{ b = 1 }", r"no data \['b'\]"),
        ('name = "one"', 'name = "one"\nbegin = "two"', "begins with 'two'"),
        ('name = "one"', 'name = "one"\nmine = true', "takes none of them"),
        ('out = "run"', 'out = "run"\nname = "work"', "cannot be called 'work'"),
        ('out = "run"', "", "recipe.toml: 'out' is missing"),
        ("[[stages]]", "[[stages]", "cannot be read"),
        ("[[stages]]", "[stages]", "'stages' is .* valid array"),
        ('name = "one"', "", "stages.1: 'name' is missing"),
        ('name = "one"', "name = 1", "stages.1: 'name' is 1. Input should be a valid string"),
        ('name = "one"', 'name = "one"\nbatch = 0', "stages.1: 'batch' is 0. .* equal to 1"),
        ('name = "one"', 'name = "one"\nbatch = "64"', "'batch' is '64'. .* integer"),
        ('name = "one"', 'name = "one"\nbatch = 6.5', "'batch' is 6.5. .* integer"),
        ('name = "one"', 'name = "one"\nbatch = true', "'batch' is True. .* integer"),
        ('name = "one"', 'name = "one"\nmixed = 1', "'mixed' is 1. .* boolean"),
        ('name = "one"', 'name = "one"\nclip = nan', "'clip' is nan. .* finite number"),
        ('name = "one"', 'name = "one"\nepochs = 0', "'epochs' is 0. .* greater than 0"),
        ('name = "one"', 'name = "one"\nlearning_rate = -1e-4', "greater than 0"),
        ('name = "one"', 'name = "one"\nmine_margin = "0.9"', "a valid number"),
        ("{ a = 1 }", "{ a = 0 }", "stages.1.data: 'a' is 0. .* greater than 0"),
        ("{ a = 1 }", '{ a = "1" }', "stages.1.data: 'a' is '1'. .* number"),
        ("{ a = 1 }", '["a"]', r"'data' is \['a'\]. .* object"),
        ('out = "run"\n[data.a]\npath = "a.jsonl"', 'out = "run"\ndata = "a.jsonl"',
         "'data' is 'a.jsonl'. .* object"),
        ('out = "run"\n[data.a]\npath = "a.jsonl"', 'out = "run"\n[data]\na = "a.jsonl"',
         r"data: 'a' is 'a\.jsonl'. .* object"),
        ('out = "run"', "out = 3", "recipe.toml: 'out' is 3. .* string"),
        ('out = "run"', 'out = "run"\nseed = -1', "'seed' is -1. .* equal to 0"),
        ('out = "run"', 'out = "run"\nevaluate = true', "'evaluate' is True. .* object"),
        ('path = "a.jsonl"', "", r"data\.a: 'path' is missing"),
        ('path = "a.jsonl"', "path = 3", r"data\.a: 'path' is 3. .* string"),
        ('path = "a.jsonl"', 'path = "a"\nkind = "b"', "'kind' is 'b'. .*one of '', 'mbeir'"),
        ('path = "a.jsonl"', 'path = "a"\nprompt = 1', "'prompt' is 1. .* string"),
    ],
)  # fmt: skip
def test_a_recipe_that_says_something_wrong_is_refused(tmp_path, old, new, reason) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.replace(old, new))
    with pytest.raises(TrainingError, match=reason):
        read_recipe(tmp_path / "recipe.toml")


def test_a_file_of_negatives_that_is_missing_is_named(tmp_path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/pool.jsonl").write_text('{"id": "c", "text": "a cat"}\n')
    row = '{"id": "q", "text": "cat", "relevant": ["c"]}\n'
    (tmp_path / "own/queries.jsonl").write_text(row)
    with pytest.raises(TrainingError, match=r"gone\.parquet cannot be read"):
        load(Source(tmp_path / "own", negatives=tmp_path / "gone.parquet"))


def test_all_keys_of_a_recipe_are_read(tmp_path) -> None:
    (tmp_path / "recipe.toml").write_text(ALL)
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert recipe.data["a"].negatives == tmp_path / "a.parquet"
    assert (recipe.stages[0].epochs, recipe.stages[0].mine_margin) == (2, 1)
    assert (recipe.adapters.alpha, recipe.evaluate.mesh, recipe.seed) == (32, True, 0)
