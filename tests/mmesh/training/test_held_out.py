"""Held-out data as they are read, and figures by a model whose order is known: no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import md5
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mmesh.content import Content, Role
from mmesh.models.protocol import FloatMatrix, Prepared
from mmesh.training import held_out
from mmesh.training.errors import TrainingError
from mmesh.training.held_out import Pool, read_held_out
from mmesh.training.mining.drawing import Rules
from mmesh.training.recipe import read_recipe
from mmesh.training.sources import Source, load, questions_of


class Words:
    """A model that counts the words of a text by their hash."""

    info = SimpleNamespace(dim=256)

    def prepare(self, content: Content, role: Role, instruction: str) -> Prepared:
        return Prepared("text", 1, content.text)

    def encode(self, inputs: Sequence[Prepared]) -> FloatMatrix:
        rows = np.zeros((len(inputs), 256), np.float32)
        for row, one in zip(rows, inputs, strict=True):
            for word in str(one.payload).split():
                row[md5(word.encode()).digest()[0]] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def encoded_by_words(monkeypatch) -> None:
    monkeypatch.setattr(held_out, "encode_together", lambda model, some: model.encode(some))


def lines(path: Path, rows: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def own(tmp_path) -> Path:
    """A data set of one's own whose every query is answered."""
    lines(tmp_path / "own/pool.jsonl", [{"id": f"c{n}", "text": f"thing{n}"} for n in range(4)])
    queries = [{"id": f"q{n}", "text": f"thing{n}", "relevant": [f"c{n}"]} for n in range(4)]
    lines(tmp_path / "own/queries.jsonl", queries)
    return tmp_path / "own"


@pytest.mark.parametrize(
    ("file", "row", "reason", "asked", "pool"),
    [
        ("queries", {"id": "q5", "text": "x", "relevant": ["c9"]}, "'c9' is not in the pool", 4, 4),
        ("queries", {"id": "q5", "text": "x", "relevant": ["c1", "c9"]}, "'c9' is not", 5, 4),
        ("queries", {"id": "q1", "text": "x", "relevant": ["c1"]}, "'q1' is there twice", 4, 4),
        ("queries", {"id": "q5", "image": "gone.png", "relevant": ["c1"]}, "is missing", 4, 4),
        ("pool", {"id": "c1", "text": "other"}, "'c1' is in the pool twice", 4, 4),
        ("pool", {"id": "c5", "image": "gone.png"}, "gone.png is missing", 4, 4),
    ],
)
def test_what_would_change_figures_is_named_or_left_out_and_counted(
    own, file, row, reason, asked, pool
) -> None:
    with (own / f"{file}.jsonl").open("a") as opened:
        opened.write(json.dumps(row) + "\n")
    with pytest.raises(TrainingError, match=rf"{file}\.jsonl:5: .*{reason}"):
        read_held_out(Source(own))
    figures = held_out.measure(Words(), Source(own, skip_broken=True))
    counts = [figures[name]["value"] for name in ("queries", "pool", "left out")]
    assert counts == [asked, pool, 1]
    assert figures["hit@1"]["value"] >= 0.8


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"query": "a", "positive": {"id": "p", "text": "a"}},
          {"query": "b", "positive": {"id": "p", "text": "b"}}], "the id 'p' was that of another"),
        ([{"id": "q", "query": "a", "positive": "a"}, {"id": "q", "query": "b", "positive": "b"}],
         "the query 'q' is there twice"),
    ],
)  # fmt: skip
def test_pairs_with_an_id_twice_are_named_or_left_out(tmp_path, rows, reason) -> None:
    source = Source(lines(tmp_path / "pairs.jsonl", [*rows, {"query": "c", "positive": "c"}]))
    with pytest.raises(TrainingError, match=rf"pairs\.jsonl:2: {reason}"):
        held_out.measure(Words(), source)
    skipping = Source(source.path, skip_broken=True)
    assert held_out.measure(Words(), skipping)["queries"]["value"] == 2


def test_mining_among_pairs_with_an_id_twice_says_so(tmp_path) -> None:
    rows = [{"query": t, "positive": {"id": "p", "text": t}} for t in ("a", "b")]
    source = Source(lines(tmp_path / "pairs.jsonl", rows))
    with pytest.raises(TrainingError, match="the id 'p' was that of another"):
        held_out.mine(Words(), source, load(source).examples, Rules(), 0)
    source = Source(source.path, skip_broken=True)
    mined, _ = held_out.mine(Words(), source, load(source).examples, Rules(), 0)
    assert [one.negatives for one in mined] == [(), ()]


def test_a_query_that_is_a_document_does_not_find_itself(tmp_path) -> None:
    """As in ArguAna and Quora, and as `mmesh evaluate` measures."""
    texts = {f"d{n}": f"word{n} and more" for n in range(6)}
    pool = texts | {f"a{n}": f"word{n} and" for n in range(6)}
    root = tmp_path / "beir"
    lines(root / "corpus.jsonl", [{"_id": name, "text": text} for name, text in pool.items()])
    lines(root / "queries.jsonl", [{"_id": name, "text": text} for name, text in texts.items()])
    (root / "qrels").mkdir()
    (root / "qrels/test.tsv").write_text("".join(f"d{n}\ta{n}\t1\n" for n in range(6)))
    figures = held_out.measure(Words(), Source(root, "test"))
    assert [figures[name]["value"] for name in ("hit@1", "queries", "pool")] == [1, 6, 12]


def test_a_query_is_searched_among_what_it_names(own) -> None:
    held = read_held_out(Source(own))
    pool = Pool(held.items, held.names, (held_out.Modality.TEXT,) * 4, np.eye(4, dtype=np.float32))
    some = [
        held_out.Asked("q", held.items[0], "", frozenset(), None, among=frozenset({"c2", "c3"})),
        held_out.Asked("r", held.items[0], "", frozenset(), None, excluded=frozenset({"c0"})),
    ]
    queries = np.float32([[0.9, 0.1, 0.2, 0.3]] * 2)
    found = [[hit.id for hit in ranked] for ranked in pool.rankings(queries, 10, asked=some)]
    assert found == [["c3", "c2"], ["c3", "c2", "c1"]]


def written(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_queries_that_several_tasks_show_are_taken_once(tmp_path) -> None:
    """CIRR searches the pool and groups of it; FashionIQ has three protocols."""
    entry = {"caption": "lighter", "img_set": {"members": ["dev-0", "dev-1", "dev-2"]}}
    written(tmp_path / "cirr/captions/cap.rc2.val.json", [
        entry | {"pairid": n, "reference": f"dev-{n}", "target_hard": f"dev-{n + 1}"}
        for n in range(2)
    ])  # fmt: skip
    names = {f"dev-{n}": f"./dev/dev-{n}.png" for n in range(6)}
    written(tmp_path / "cirr/image_splits/split.rc2.val.json", names)
    for kind in ("dress", "shirt", "toptee"):
        captions = [{"candidate": f"{kind}0", "target": f"{kind}1", "captions": ["red", "long"]}]
        written(tmp_path / f"fiq/captions/cap.{kind}.val.json", captions)
        written(tmp_path / f"fiq/image_splits/split.{kind}.val.json", [f"{kind}0", f"{kind}1"])
    cirr = questions_of(Source(tmp_path / "cirr", "val"))
    assert [(one.query.id, one.query.among) for one in cirr] == [("0", ()), ("1", ())]
    assert [one.query.excluded for one in cirr] == [("dev-0",), ("dev-1",)]
    fashion = questions_of(Source(tmp_path / "fiq", "val"))
    assert [one.query.id for one in fashion] == ["dress-0", "shirt-0", "toptee-0"]


RECIPE = """
out = "run"
[data.a]
path = "{path}"
[held_out.b]
path = "{held}"
{more}
[[stages]]
name = "one"
data = {{ a = 1 }}
"""


def test_held_out_data_are_the_test_split_unless_they_say_another(tmp_path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(path="M-BEIR", held="M-BEIR", more=""))
    read = read_recipe(recipe)
    assert (read.data["a"].split, read.held_out["b"].split) == ("train", "test")
    recipe.write_text(RECIPE.format(path="M-BEIR", held="M-BEIR", more='split = "val"'))
    assert read_recipe(recipe).held_out["b"].split == "val"


@pytest.mark.parametrize(
    ("path", "held", "more"),
    [
        ("M-BEIR", "M-BEIR", 'split = "train"'),
        ("own", "./own", ""),  # it has no splits
        ("own/queries.jsonl", "own/queries.jsonl", ""),
    ],
)
def test_what_is_trained_on_is_not_held_out(own, tmp_path, path, held, more) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(path=path, held=held, more=more))
    with pytest.raises(TrainingError, match=r"held_out\.b holds the rows of data\.a"):
        read_recipe(recipe)
