"""Examples from pairs, data sets and mined negatives; recipes; and refusals of what is wrong."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesh.content import Modality
from mmesh.errors import FailedPrecondition
from mmesh.training.errors import TrainingError
from mmesh.training.examples import Example, Item
from mmesh.training.mining.files import Row, read_negatives, write_negatives
from mmesh.training.sampling import Sampler
from mmesh.training.sources import Source, load, pool_of, questions_of


def lines(path: Path, rows: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path, pictures) -> Path:
    """A data set of one's own: a picture, an illustrated text and two texts."""
    root = tmp_path / "own"
    root.mkdir()
    (root / "cat.png").write_bytes(pictures.png(1))
    pool = [
        {"id": "c1", "image": "cat.png"},
        {"id": "c2", "text": "a cat", "image": "cat.png"},
        {"id": "c3", "text": "a dog"},
        {"id": "c4", "text": "a bird"},
    ]
    queries = [
        {"id": "q1", "text": "cat", "instruction": "Find a picture.", "relevant": ["c1", "c2"]},
        {"id": "q2", "image": "cat.png", "relevant": {"c3": 0, "c4": 2}},
    ]
    lines(root / "pool.jsonl", pool)
    lines(root / "queries.jsonl", queries)
    return root


def test_pairs_hold_texts_pictures_and_both(tmp_path, pictures) -> None:
    (tmp_path / "cat.png").write_bytes(pictures.png(1))
    path = lines(tmp_path / "pairs.jsonl", [
        {"query": "cat", "instruction": "Find it.", "positive": {"image": "cat.png", "id": "c1"},
         "negatives": ["a dog", {"text": "sofa", "image": "cat.png"}]},
        {"id": "mine", "query": {"image": "cat.png"}, "positives": ["a cat", "a pet"]},
    ])  # fmt: skip
    first, second = load(Source(path, instruction="Say it.")).examples
    cat = tmp_path / "cat.png"
    assert first == Example(
        "1", Item("cat"), (Item("", cat, "c1"),), (Item("a dog"), Item("sofa", cat)), "Find it."
    )
    assert (second.id, second.instruction) == ("mine", "Say it.")
    assert second.positives == (Item("a cat"), Item("a pet"))
    assert len(list(pool_of(Source(path), [first, second]))) == 5


def test_a_data_set_gives_its_judged_candidates_and_mined_negatives(folder, tmp_path) -> None:
    mined = tmp_path / "mined.parquet"
    row = Row("q1", "image", ("c1", "c2"), ("c3",), ("wrong_modality",))
    write_negatives(mined, [row], {})
    first, second = load(Source(folder, negatives=mined)).examples
    assert [item.id for item in first.positives] == ["c1", "c2"]
    assert first.negatives == (Item("a dog", None, "c3"),)
    assert [item.id for item in second.positives] == ["c4"]
    assert second.negatives == ()
    assert first.where.endswith("queries.jsonl:1")


def test_mbeir_trains_by_its_own_files(tmp_path) -> None:
    """One task, as published: the split `train` of queries, qrels and pools."""
    pool = [
        {"did": f"2:{n}", "txt": f"paragraph {n}", "img_path": None, "modality": "text"}
        for n in range(1, 5)
    ]
    asked = [{"qid": "2:1", "query_txt": "who", "query_img_path": "null", "query_modality": "text",
              "pos_cand_list": ["2:3"], "neg_cand_list": []}]  # fmt: skip
    lines(tmp_path / "cand_pool/global/mbeir_union_train_cand_pool.jsonl", pool)
    lines(tmp_path / "cand_pool/local/mbeir_webqa_task1_cand_pool.jsonl", pool)
    lines(tmp_path / "query/train/mbeir_webqa_task1_train.jsonl", asked)
    (tmp_path / "qrels/train").mkdir(parents=True)
    (tmp_path / "qrels/train/mbeir_webqa_task1_train_qrels.txt").write_text("2:1 0 2:3 1 1\n")
    head = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\n"
    (tmp_path / "instructions").mkdir()
    prompts = tmp_path / "instructions/query_instructions.tsv"
    prompts.write_text(head + "text\ttext\tWebQA\t2\tFind a paragraph\n")
    (only,) = load(Source(tmp_path)).examples
    assert (only.query, only.instruction) == (Item("Who."), "Find a paragraph.")
    assert only.positives == (Item("Paragraph 3.", None, "2:3"),)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"query": "a"}, "has no positive"),
        ({"positive": "a"}, "has no query"),
        ({"query": "a", "positive": {"id": "x"}}, "without text and image"),
        ({"query": "a", "positive": {"image": "gone.png"}}, r"gone.png is missing"),
        ("no object", "is no JSON object"),
        ({"query": "q", "positive": "cut emoji \ud83d"}, "lone surrogate"),
        ({"query": "q", "positive": "p", "instruction": "\udc00"}, "lone surrogate"),
    ],
)
def test_what_cannot_be_used_is_named_and_may_be_skipped(tmp_path, row, reason) -> None:
    path = lines(tmp_path / "pairs.jsonl", [{"query": "q", "positive": "p"}, row])
    with pytest.raises(TrainingError, match=rf"pairs.jsonl:2: .*{reason}"):
        load(Source(path))
    loaded = load(Source(path, skip_broken=True))
    assert (len(loaded.examples), len(loaded.broken)) == (1, 1)


def test_a_positive_that_is_not_in_the_pool_is_named(folder) -> None:
    lines(folder / "queries.jsonl", [{"id": "q", "text": "x", "relevant": ["gone"]}])
    with pytest.raises(TrainingError, match=r"queries.jsonl:1: the candidate 'gone' is not in"):
        load(Source(folder))


def test_negatives_of_another_data_set_are_refused(folder, tmp_path) -> None:
    mined = tmp_path / "mined.parquet"
    write_negatives(mined, [Row("other", "text", ("c1",), ("c3",), ("low_rank",))], {})
    with pytest.raises(TrainingError, match="has no query of"):
        load(Source(folder, negatives=mined))


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("queries.jsonl", {"id": "q3", "relevant": ["c4"]}, "neither text nor image"),
        ("queries.jsonl", {"id": "q3", "text": "x", "relevant": 4}, "neither a list of ids nor"),
        ("queries.jsonl", {"id": "q3", "text": "x"}, "'q3' has no positive"),
        ("pool.jsonl", {"id": "c5"}, "neither text nor image"),
        ("pool.jsonl", {"id": "c5", "text": "\ud83d"}, "lone surrogate"),
        ("queries.jsonl", {"id": "q3", "text": "\ud83d", "relevant": ["c4"]}, "lone surrogate"),
    ],
)
def test_a_broken_row_that_is_held_out_is_named_and_may_be_skipped(
    folder, name, row, reason
) -> None:
    """Left out in silence it would change the figures."""
    with (folder / name).open("a") as file:
        file.write(json.dumps(row) + "\n")
    number = len((folder / name).read_text().splitlines())

    def read(source: Source) -> tuple[int, int]:
        return len(questions_of(source)), len(list(pool_of(source, [])))

    with pytest.raises(TrainingError, match=rf"{name}:{number}: .*{reason}"):
        read(Source(folder))
    assert read(Source(folder, skip_broken=True)) == (2, 4)


@pytest.mark.parametrize("name", ["pool", "queries"])
def test_a_packed_file_that_is_cut_off_is_an_error(folder, name) -> None:
    packed = gzip.compress((folder / f"{name}.jsonl").read_bytes())
    (folder / f"{name}.jsonl").unlink()
    (folder / f"{name}.jsonl.gz").write_bytes(packed[:-9])
    for read in (load, questions_of, lambda source: list(pool_of(source, []))):
        if (read, name) == (questions_of, "pool"):
            continue
        with pytest.raises(TrainingError, match=rf"{name}.jsonl.gz is cut off"):
            read(Source(folder))


def test_packed_pairs_that_are_cut_off_are_an_error(tmp_path) -> None:
    rows = [{"query": f"q{n}", "positive": f"p{n}"} for n in range(50)]
    whole = gzip.compress(lines(tmp_path / "pairs.jsonl", rows).read_bytes())
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(whole)
    assert len(load(Source(path)).examples) == 50
    path.write_bytes(whole[:-9])
    with pytest.raises(TrainingError, match="is cut off after line"):
        load(Source(path, skip_broken=True))


def test_nothing_is_an_error(tmp_path) -> None:
    (tmp_path / "pairs.jsonl").write_text("")
    with pytest.raises(TrainingError, match="gives no example"):
        load(Source(tmp_path / "pairs.jsonl"))


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(8, 40), min_size=1),
    st.integers(1, 8),
    st.integers(0, 5),
    st.booleans(),
)
def test_an_epoch_shows_each_example_once_and_a_step_is_always_the_same(
    sizes, batch, seed, mixed
) -> None:
    examples = {
        name: [Example(f"{name}{n}", Item(f"q{n}"), (Item("p"), Item("r"))) for n in range(size)]
        for name, size in sizes.items()
    }
    made = [Sampler(examples, dict.fromkeys(sizes, 1.0), batch, 0, seed, mixed) for _ in range(2)]
    steps = [
        [[lesson.example.id for lesson in one.lessons(step)] for step in range(12)] for one in made
    ]
    assert steps[0] == steps[1]
    assert all(len(one) == batch for one in steps[0])
    for name, size in sizes.items():
        seen = [one for step in steps[0] for one in step if one.startswith(name)]
        each = seen[: size // batch * batch] if not mixed else seen[: size // 2]
        assert len(set(each)) == len(each) or (mixed and len(seen) < len(each) * 2)


def test_weights_decide_shares() -> None:
    examples = {n: [Example(f"{n}{i}", Item("q"), (Item("p"),)) for i in range(90)] for n in "ab"}
    batch = Sampler(examples, {"a": 3, "b": 1}, 16, 0, 0).lessons(5)
    assert [sum(one.example.id[0] == n for one in batch) for n in "ab"] == [12, 4]
    with pytest.raises(TrainingError, match="has no place for 'b'"):
        Sampler(examples, {"a": 200, "b": 1}, 16, 0, 0).lessons(0)
    one_set = Sampler(examples, {"a": 3, "b": 1}, 16, 0, 0, mixed=False)
    names = [{one.example.id[0] for one in one_set.lessons(step)} for step in range(40)]
    assert all(len(name) == 1 for name in names)
    assert 22 <= names.count({"a"}) <= 38


def test_mining_in_the_process_draws_what_the_command_would(tmp_path) -> None:
    """With vectors whose order is known: a model that reads numbers."""
    pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
    from mmesh.models.encoders.lite import load_lite
    from mmesh.training import held_out
    from mmesh.training.mining.drawing import Rules

    rows = [
        {"query": f"harbour {n}", "positive": {"text": f"a harbour {n}", "id": f"c{n}"}}
        for n in range(12)
    ]
    source = Source(lines(tmp_path / "pairs.jsonl", rows))
    examples = load(source).examples
    model = load_lite(threads=1)
    mined, statistics = held_out.mine(model, source, examples, Rules(8, 3, count=2), 4)
    counts = statistics.by_wanted[Modality.TEXT]
    assert counts.queries == 12
    pool = held_out.open_pool(model, source, examples)
    for one in mined:
        vector = held_out.embed(model, [(one.query, "")], held_out.Role.QUERY)[0]
        order = np.argsort(-np.round(pool.vectors @ vector, 4), kind="stable")[:8]
        low = {pool.names[place] for place in order[3:]} - {one.positives[0].id}
        assert {item.id for item in one.negatives} <= low
        assert len(one.negatives) == min(2, len(low))
    held_out.write_mined(tmp_path / "work/mined.json", mined, source.root)
    assert held_out.read_mined(tmp_path / "work/mined.json", examples, source.root) == mined
    figures = held_out.measure(model, source)
    assert figures["hit@10"]["value"] == 1


@pytest.mark.parametrize("place", range(40, 400, 60))
def test_mined_negatives_that_are_damaged_are_refused_in_words(tmp_path, place):
    mined = tmp_path / "mined.parquet"
    write_negatives(mined, [Row("q", "text", ("a",), ("b",), ("low_rank",))] * 50, {})
    data = bytearray(mined.read_bytes())
    data[-place:-10] = random.Random(place).randbytes(place - 10)
    mined.write_bytes(data)
    with pytest.raises(FailedPrecondition, match="is damaged and cannot be read"):
        list(read_negatives(mined))
