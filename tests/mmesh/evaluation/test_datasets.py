"""Readers of data sets: published layouts are read, broken rows are named by file and line."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest

from mmesh.content import Modality
from mmesh.evaluation.datasets import own
from mmesh.evaluation.datasets.dataset import (
    Broken,
    DatasetError,
    Judgement,
    PoolRow,
    Query,
)
from mmesh.evaluation.datasets.mbeir import MBeir, format_string
from mmesh.evaluation.datasets.opening import Choice, open_dataset
from mmesh.evaluation.live.contents import content_of
from mmesh.evaluation.live.filling import pool_digest
from mmesh.evaluation.survey import survey


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text)
    return path


def jsonl(path: Path, *rows: object) -> Path:
    return write(path, "".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))


def broken(rows: list[object]) -> dict[str, str]:
    return {Path(row.where).name: row.reason for row in rows if isinstance(row, Broken)}


# -- M-BEIR


@pytest.fixture(scope="module")
def mbeir(mini_mbeir) -> Path:
    return mini_mbeir(4, 2)


def test_all_16_tasks_are_read_in_the_order_of_the_publication(mbeir) -> None:
    dataset = open_dataset(mbeir)
    assert dataset.name == "mbeir-test"
    names = [task.name for task in dataset.tasks]
    assert (len(names), names[0], names[-1]) == (16, "visualnews_task0", "infoseek_task8")
    headlines = {task.name for task in dataset.tasks if task.headline == "hit@10"}
    assert headlines == {"fashion200k_task0", "fashion200k_task3", "fashioniq_task7"}
    for task in dataset.tasks:
        queries = list(dataset.queries(task))
        assert [type(query) for query in queries] == [Query, Query]
        assert all(query.instruction.endswith("way 1.") for query in queries)
        judged = {one.query for one in dataset.judgements(task) if isinstance(one, Judgement)}
        assert judged == {query.id for query in queries}


def test_the_local_pool_of_a_row_of_the_union_follows_from_data_set_and_modality(mbeir) -> None:
    """And is the one whose file holds it."""
    union = {row.id: row.pools for row in open_dataset(mbeir).pool() if isinstance(row, PoolRow)}
    assert len(union) == 16 * 4
    for path in (mbeir / "cand_pool/local").iterdir():
        name = path.name.removeprefix("mbeir_").removesuffix("_cand_pool.jsonl")
        local = [json.loads(line)["did"] for line in path.read_text().splitlines()]
        assert {union[did] for did in local} == {(name.removesuffix("_test"),)}


def test_modalities_follow_from_the_parts_that_are_there(mbeir) -> None:
    dataset = open_dataset(mbeir)
    for task in dataset.tasks:
        for row in dataset.pool():
            assert isinstance(row, PoolRow)
            if row.pools == (task.name,):
                parts = (bool(row.text), row.image is not None)
                assert (
                    parts
                    == {
                        Modality.TEXT: (True, False),
                        Modality.IMAGE: (False, True),
                        Modality.IMAGE_TEXT: (True, True),
                    }[task.wanted]
                )


def test_without_the_global_file_the_union_is_made_of_the_tasks_pools(mbeir) -> None:
    some = MBeir(mbeir, only=("cirr_task7", "mscoco_task0"), unions=False)
    assert {path.name for path in some.pool_files} == {
        "mbeir_cirr_task7_cand_pool.jsonl",
        "mbeir_mscoco_task0_test_cand_pool.jsonl",
    }
    assert len(list(some.pool())) == 8
    assert [task.name for task in some.tasks] == ["mscoco_task0", "cirr_task7"]


def test_prompts_are_the_first_by_default_another_or_random_by_seed(mbeir) -> None:
    def prompts(**options: object) -> list[str]:
        dataset = MBeir(mbeir, **options)  # type: ignore[arg-type]
        return [q.instruction for t in dataset.tasks for q in dataset.queries(t)]  # type: ignore[union-attr]

    assert {prompt[-2] for prompt in prompts()} == {"1"}
    assert {prompt[-2] for prompt in prompts(prompt="3")} == {"3"}
    drawn = prompts(prompt="random", seed=1)
    assert len({prompt[-2] for prompt in drawn}) > 1
    assert drawn == prompts(prompt="random", seed=1) != prompts(prompt="random", seed=2)
    assert "seed 1" in MBeir(mbeir, prompt="random", seed=1).notes[0]


def test_texts_are_sent_as_uniir_formats_them() -> None:
    assert format_string(' "a cat\r" ') == "A cat."
    assert format_string("who?") == "Who?"
    assert format_string("") == ""


@pytest.fixture
def own_mbeir(mbeir, tmp_path) -> Path:
    shutil.copytree(mbeir, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_prompt_that_is_missing_is_named_with_its_task(own_mbeir) -> None:
    path = own_mbeir / "instructions/query_instructions.tsv"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "CIRR" not in line))
    with pytest.raises(
        DatasetError, match=r"query_instructions\.tsv has no prompt 1 for cirr_task7"
    ):
        open_dataset(own_mbeir)
    assert len(open_dataset(own_mbeir, choice=Choice(tasks=("mscoco_task0",))).tasks) == 1


def test_broken_rows_are_named_by_file_and_line_and_the_rest_is_read(own_mbeir) -> None:
    pool = own_mbeir / "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
    good = pool.read_text().splitlines()[0]
    jsonl(
        pool,
        good,
        "{",
        {"did": "8:900", "modality": "image"},
        {"txt": "x", "modality": "text"},
        {"did": "8:901", "txt": "x", "modality": "video"},
        {"did": "4:9", "txt": "x", "modality": "text"},
        {"did": "8 9", "txt": "x", "modality": "image"},
    )
    rows = list(open_dataset(own_mbeir).pool())
    assert sum(isinstance(row, PoolRow) for row in rows) == 1
    found = broken(rows)
    assert {key.rpartition(":")[2] for key in found} == {"2", "3", "4", "5", "6", "7"}
    said = {key.rpartition(":")[2]: reason for key, reason in found.items()}
    assert "JSON" in said["2"]
    assert "neither txt nor img_path" in said["3"]
    assert "no id" in said["4"]
    assert "'video'" in said["5"]
    assert "no pool" in said["6"]
    assert "white space" in said["7"]


def test_qrels_of_another_width_or_grade_are_broken_rows(own_mbeir) -> None:
    path = own_mbeir / "qrels/test/mbeir_cirr_task7_test_qrels.txt"
    path.write_text("8:701 0 8:1 1 7\n8:702 0 8:2\n8:703 0 8:3 yes 7\n8:704 0 8:4 1\n")
    dataset = open_dataset(own_mbeir, choice=Choice(tasks=("cirr_task7",)))
    rows = list(dataset.judgements(dataset.tasks[0]))
    assert [type(row) for row in rows] == [Judgement, Broken, Broken, Judgement]
    assert "3 columns" in rows[1].reason  # type: ignore[union-attr]
    assert rows[2].where.endswith("qrels.txt:3")  # type: ignore[union-attr]


def test_a_survey_remembers_eight_bytes_of_a_candidate(tmp_path) -> None:
    """Pools have millions of them."""
    peaks = []
    for rows in (2_000, 10_000):
        root = tmp_path / str(rows)
        jsonl(root / "pool.jsonl", *({"id": f"c{n}", "text": f"thing {n}"} for n in range(rows)))
        jsonl(root / "queries.jsonl", {"id": "q", "text": "thing", "relevant": ["c1"]})
        dataset = open_dataset(root)
        tracemalloc.start()
        found = survey(dataset)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (found.total, found.holds("c1"), found.holds("d1")) == (rows, True, False)
    assert (peaks[1] - peaks[0]) / 8_000 < 24  # with the room to grow and what sorting takes


def test_qrels_that_are_cut_off_are_told_by_the_survey(own_mbeir) -> None:
    """Before the pool is sent, not when the last search is done."""
    path = own_mbeir / "qrels/test/mbeir_cirr_task7_test_qrels.txt"
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    path.with_name(f"{path.name}.gz").write_bytes(packed[:-9])
    with pytest.raises(DatasetError, match=r"cirr_task7_test_qrels\.txt\.gz is cut off"):
        survey(open_dataset(own_mbeir))


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice(tasks=("coco",)), "no task coco; it has visualnews_task0"),
        (Choice(split="train"), "no train queries"),
        (Choice(prompt="4"), None),
    ],
)
def test_what_the_folder_lacks_is_said_at_once(mbeir, choice, words) -> None:
    if words is None:
        open_dataset(mbeir, choice=choice)
        return
    with pytest.raises(DatasetError, match=words):
        open_dataset(mbeir, choice=choice)


def test_a_folder_of_no_known_kind_is_refused_with_what_is_known(tmp_path) -> None:
    with pytest.raises(DatasetError, match=r"beir: corpus\.jsonl"):
        open_dataset(tmp_path)


# -- BEIR


@pytest.fixture
def beir(tmp_path) -> Path:
    root = tmp_path / "SciFact"
    jsonl(
        root / "corpus.jsonl",
        {"_id": "d1", "title": "Cats", "text": "sleep."},
        {"_id": "d2", "title": "", "text": ""},
        {"_id": 3, "text": "Dogs."},
        "[]",
    )
    jsonl(root / "queries.jsonl", {"_id": "q1", "text": "pets"}, {"_id": "q2", "text": "train"})
    write(root / "qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td9\n")
    return root


def test_beir_joins_titles_and_asks_only_judged_queries(beir) -> None:
    dataset = open_dataset(beir)
    (task,) = dataset.tasks
    assert (dataset.name, task.headline) == ("beir-scifact-test", "ndcg@10")
    rows = list(dataset.pool())
    assert [row.text for row in rows if isinstance(row, PoolRow)] == ["Cats sleep.", "Dogs."]
    assert set(broken(rows)) == {"corpus.jsonl:2", "corpus.jsonl:4"}
    assert [q.id for q in dataset.queries(task) if isinstance(q, Query)] == ["q1"]
    assert next(iter(dataset.judgements(task))) == Judgement("q1", "d1", 2)
    assert isinstance(list(dataset.judgements(task))[1], Broken)


def test_gzipped_files_are_the_same_and_a_cut_one_is_an_error(beir) -> None:
    plain = list(open_dataset(beir).pool())
    packed = gzip.compress((beir / "corpus.jsonl").read_bytes() * 1)
    (beir / "corpus.jsonl").unlink()
    (beir / "corpus.jsonl.gz").write_bytes(packed)
    texts = [row.text for row in open_dataset(beir).pool() if isinstance(row, PoolRow)]
    assert texts == [row.text for row in plain if isinstance(row, PoolRow)]
    (beir / "corpus.jsonl.gz").write_bytes(packed[:-12])
    with pytest.raises(DatasetError, match=r"corpus\.jsonl\.gz is cut off"):
        list(open_dataset(beir).pool())
    (beir / "corpus.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DatasetError, match="cannot be read"):
        list(open_dataset(beir).pool())


# -- CIRCO, CIRR, FashionIQ


def test_circo_grades_the_target_above_the_other_ground_truths(tmp_path) -> None:
    entry = {
        "reference_img_id": 12,
        "target_img_id": 34,
        "relative_caption": "is red",
        "shared_concept": "a car",
        "gt_img_ids": [34, 56],
        "id": 0,
        "semantic_aspects": ["addition"],
    }
    write(tmp_path / "annotations/val.json", [entry, {"id": 1}])
    write(tmp_path / "COCO2017_unlabeled/unlabeled2017/000000000034.jpg", "")
    dataset = open_dataset(tmp_path)
    (task,) = dataset.tasks
    query, bad = dataset.queries(task)
    assert isinstance(query, Query)
    assert query.image is not None
    assert (query.id, query.text, query.image.name) == ("0", "is red", "000000000012.jpg")
    assert query.groups == ("addition",)
    assert isinstance(bad, Broken)
    assert list(dataset.judgements(task)) == [Judgement("0", "34", 2), Judgement("0", "56", 1)]
    assert [row.id for row in dataset.pool()] == ["34"]  # type: ignore[union-attr]
    before = pool_digest(dataset)
    write(tmp_path / "COCO2017_unlabeled/unlabeled2017/000000000056.jpg", "")
    assert pool_digest(dataset) != before  # it is put in when the same command goes on
    write(tmp_path / "COCO2017_unlabeled/unlabeled2017/._000000000056.jpg", "")
    assert [type(row) for row in dataset.pool()] == [Broken, PoolRow, PoolRow]
    listing = tmp_path / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
    write(listing, {"images": [{"id": 7, "file_name": "000000000007.jpg"}, {"id": 8}]})
    assert [type(row) for row in dataset.pool()] == [PoolRow, Broken]


def test_circo_test_has_queries_and_no_judgements(tmp_path) -> None:
    write(
        tmp_path / "annotations/test.json",
        [{"reference_img_id": 1, "relative_caption": "x", "shared_concept": "y", "id": 0}],
    )
    dataset = open_dataset(tmp_path, choice=Choice(split="test"))
    assert not dataset.tasks[0].judged
    assert len(list(dataset.queries(dataset.tasks[0]))) == 1
    assert list(dataset.judgements(dataset.tasks[0])) == []


def test_cirr_leaves_the_reference_out_and_has_a_task_within_groups(tmp_path) -> None:
    entry = {
        "pairid": 5,
        "reference": "dev-1",
        "target_hard": "dev-2",
        "caption": "two dogs",
        "target_soft": {"dev-2": 1.0},
        "img_set": {"id": 1, "members": ["dev-1", "dev-2", "dev-3"]},
    }
    write(tmp_path / "captions/cap.rc2.val.json", [entry, {"pairid": 6}])
    names = {f"dev-{n}": f"./dev/dev-{n}.png" for n in (1, 2, 3, 4)}
    write(tmp_path / "image_splits/split.rc2.val.json", names)
    dataset = open_dataset(tmp_path)
    whole, within = dataset.tasks
    query, bad = dataset.queries(whole)
    assert isinstance(query, Query)
    assert (query.id, query.excluded, query.among) == ("5", ("dev-1",), ())
    assert isinstance(bad, Broken)
    assert next(dataset.queries(within)).among == ("dev-2", "dev-3")  # type: ignore[union-attr]
    assert next(iter(dataset.judgements(whole))) == Judgement("5", "dev-2", 1)
    rows = [row for row in dataset.pool() if isinstance(row, PoolRow)]
    assert [row.attributes for row in rows] == [{"id": name} for name in names]


def test_fashioniq_has_three_protocols_under_three_names(tmp_path) -> None:
    for category in ("dress", "shirt", "toptee"):
        captions = [
            {
                "target": f"{category}1",
                "candidate": f"{category}2",
                "captions": ["Is shiny.", "has longer sleeves"],
            }
        ]
        write(tmp_path / f"captions/cap.{category}.val.json", captions)
        listed = [f"{category}{n}" for n in (1, 2, 3)]
        write(tmp_path / f"image_splits/split.{category}.val.json", listed)
        write(tmp_path / f"image_splits/split.{category}.train.json", [f"{category}9"])
    dataset = open_dataset(tmp_path)
    assert [task.name for task in dataset.tasks][::3] == [
        "original-dress",
        "val-dress",
        "mbeir-dress",
    ]
    pools = {row.id: set(row.pools) for row in dataset.pool() if isinstance(row, PoolRow)}
    assert len(pools) == 12
    assert pools["dress1"] == {"mbeir", "original-dress", "val-dress"}
    assert pools["dress3"] == {"mbeir", "original-dress"}
    assert pools["dress9"] == {"mbeir"}
    (query,) = dataset.queries(dataset.tasks[0])
    assert isinstance(query, Query)
    assert query.text == "Is shiny and has longer sleeves."
    assert list(dataset.judgements(dataset.tasks[0])) == [Judgement("dress-0", "dress1", 1)]


# -- our own


def test_own_data_takes_judgements_from_queries_and_from_qrels(tmp_path) -> None:
    jsonl(
        tmp_path / "pool.jsonl",
        {"id": "a", "text": "x"},
        {"id": "b", "image": "b.png"},
        {"id": "c", "text": "y", "pool": ["pets", "toys"]},
        {"id": "d"},
    )
    jsonl(
        tmp_path / "queries.jsonl",
        {"id": "q1", "text": "1", "relevant": ["a"], "target": "image"},
        {"id": "q2", "text": "2", "relevant": {"b": 3}, "task": "pets"},
        {"id": "q3", "text": "3", "target": "smell"},
        {"id": "q4", "text": "4", "relevant": 7},
    )
    write(tmp_path / "qrels.txt", "q1 0 c 1\nq2 0 c 1\n")
    dataset = open_dataset(tmp_path)
    plain, pets = dataset.tasks
    assert (plain.name, pets.name) == ("all", "pets")
    first, bad, _ = dataset.queries(plain)
    assert isinstance(first, Query)
    assert first.wanted is Modality.IMAGE
    assert isinstance(bad, Broken)
    judged = list(dataset.judgements(plain))
    assert judged[0] == Judgement("q1", "a", 1)
    assert isinstance(judged[1], Broken)
    assert judged[2:] == [Judgement("q1", "c", 1)]
    assert list(dataset.judgements(pets)) == [Judgement("q2", "b", 3), Judgement("q2", "c", 1)]
    pools = [row.pools if isinstance(row, PoolRow) else None for row in dataset.pool()]
    assert pools == [("all",), ("all",), ("pets", "toys"), None]


def test_tasks_of_any_name_have_files_of_their_own(tmp_path) -> None:
    names = ["pets/cats", "../../x", "a\0b", "ä" * 200, "a\u2028b", "plain name"]
    jsonl(tmp_path / "pool.jsonl", {"id": "a", "text": "x"})
    rows = [
        {"id": str(n), "text": "1", "relevant": ["a"], "task": name} for n, name in enumerate(names)
    ]
    jsonl(tmp_path / "queries.jsonl", *rows)
    dataset = open_dataset(tmp_path)
    assert [task.pool for task in dataset.tasks] == names
    assert dataset.tasks[0].name == "pets%2Fcats"
    assert dataset.tasks[-1].name == "plain name"
    for number, task in enumerate(dataset.tasks):
        (tmp_path / f"{task.name}.local.jsonl").touch()
        assert [query.id for query in dataset.queries(task)] == [str(number)]  # type: ignore[union-attr]
        assert [one.query for one in dataset.judgements(task)] == [str(number)]  # type: ignore[union-attr]
    assert len(list(tmp_path.glob("*.local.jsonl"))) == len(names)


def test_qrels_of_own_data_are_read_without_reading_the_queries_for_each(
    tmp_path, monkeypatch
) -> None:
    rows = [{"id": f"q{n}", "text": "1"} for n in range(50)]
    jsonl(tmp_path / "pool.jsonl", {"id": "a", "text": "x"})
    jsonl(tmp_path / "queries.jsonl", *rows)
    write(tmp_path / "qrels.tsv", "".join(f"q{n}\t0\ta\t1\n" for n in range(50)))
    read: list[Path] = []
    json_rows = own.json_rows
    monkeypatch.setattr(own, "json_rows", lambda path: read.append(path) or json_rows(path))
    dataset = open_dataset(tmp_path)
    assert len(list(dataset.judgements(dataset.tasks[0]))) == 50
    assert len(read) <= 3


@pytest.mark.parametrize("relevant", [[{"did": "a"}], [["a"]], [None], {"a": "much"}])
def test_what_is_no_list_of_ids_is_a_broken_row(tmp_path, relevant) -> None:
    jsonl(tmp_path / "pool.jsonl", {"id": "a", "text": "x"})
    jsonl(tmp_path / "queries.jsonl", {"id": "q", "text": "1", "relevant": relevant})
    dataset = open_dataset(tmp_path)
    assert [type(one) for one in dataset.judgements(dataset.tasks[0])] == [Broken]


def test_a_folder_of_any_name_gives_a_name_that_a_collection_can_have(tmp_path) -> None:
    root = tmp_path / "Données 2"
    jsonl(root / "pool.jsonl", {"id": "a", "text": "x"})
    jsonl(root / "queries.jsonl", {"id": "q", "text": "1"})
    assert open_dataset(root).name == "donn-es-2"


def test_a_query_id_twice_in_a_task_is_refused_by_file_and_line(tmp_path) -> None:
    """Answers are told apart by it: both would be scored with one of them."""
    jsonl(tmp_path / "pool.jsonl", {"id": "a", "text": "x"})
    first = {"id": "q", "text": "1", "relevant": ["a"]}
    jsonl(tmp_path / "queries.jsonl", first, first | {"task": "other"})
    assert survey(open_dataset(tmp_path)).queries == {"all": 1, "other": 1}
    jsonl(tmp_path / "queries.jsonl", first, first | {"task": "other"}, first | {"text": "2"})
    with pytest.raises(DatasetError, match=r"queries\.jsonl:3 has the query id 'q', which came"):
        survey(open_dataset(tmp_path))


def test_a_file_that_can_be_read_only_once_is_refused(tmp_path) -> None:
    write(tmp_path / "pool.jsonl", '{"id": "a", "text": "a"}\n')
    os.mkfifo(tmp_path / "queries.jsonl")
    with pytest.raises(DatasetError, match=r"queries\.jsonl is a pipe; write it to a file first"):
        open_dataset(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path) -> None:
    jsonl(tmp_path / "pool.jsonl", {"id": "a", "text": "x"})
    write(tmp_path / "queries.jsonl", '\ufeff{"id": "q", "text": "1"}\n')
    write(tmp_path / "qrels.txt", "\ufeffq 0 a 1\n")
    dataset = open_dataset(tmp_path)
    (task,) = dataset.tasks
    assert [one.id for one in dataset.queries(task) if isinstance(one, Query)] == ["q"]
    assert [one.query for one in dataset.judgements(task) if isinstance(one, Judgement)] == ["q"]


def test_a_picture_that_is_no_file_is_a_picture_that_cannot_be_read(tmp_path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match="is no file"):
        content_of(PoolRow("a", "", tmp_path / "a.png", ("all",), ""))
