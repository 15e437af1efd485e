"""Runs compared, thresholds and reports, from results written by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmesh.evaluation.bootstrap import Estimate, estimate_mean
from mmesh.evaluation.comparing import AVERAGE, compare_runs, regressions, tasks_lost
from mmesh.evaluation.datasets.dataset import DatasetError, Query
from mmesh.evaluation.gate import Threshold, failures, parse_threshold
from mmesh.evaluation.report.page import markdown_page, page_of
from mmesh.evaluation.report.tables import Table, headline_table, markdown_of
from mmesh.evaluation.report.worst import choose, thumbnail
from mmesh.evaluation.results import Results, TaskResult, read_results, write_results
from mmesh.evaluation.scoring import Poor


def task(name: str, values: list[float], judgements: str = "j") -> TaskResult:
    return TaskResult(
        name, "local", "hit@5", "image", len(values),
        {"hit@5": estimate_mean(values), "mismatch": Estimate(0.2, 0.1, 0.3)},
        {}, {"text": 0.5, "image": 0.5, "image_text": 0.0}, {"total": (1.0, 2.0)},
        0, {}, {}, {"any": len(values)}, 0, 0, 0, 0, judgements,
    )  # fmt: skip


def results(*tasks: TaskResult, dataset: str = "own") -> Results:
    average = float(np.mean([one.figures["hit@5"].value for one in tasks]))
    options = {"rerank": 0, "merge": None, "target": "any"}
    return Results(
        dataset, ("a note",), options, "c", "e", "", {"text": 3},
        {"counts": {}, "examples": []}, tasks, {"local": Estimate(average, 0, 1)},
    )  # fmt: skip


def stored(folder: Path, values: dict[str, list[float]], judgements: str = "j") -> Path:
    (folder / "scores").mkdir(parents=True)
    write_results(results(*(task(n, v, judgements) for n, v in values.items())), folder)
    for name, found in values.items():
        rows = [{"query": f"q{n}", "hit@5": v, "mismatch": v} for n, v in enumerate(found)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "scores" / f"{name}.local.jsonl").write_text(text)
    return folder


def test_a_clear_loss_is_a_regression_and_noise_is_not(tmp_path) -> None:
    random = np.random.default_rng(0)
    base = {name: list((random.random(200) < 0.7).astype(float)) for name in ("one", "two")}
    a = stored(tmp_path / "a", base)
    worse = base | {"one": [value * (n % 3 > 0) for n, value in enumerate(base["one"])]}
    b = stored(tmp_path / "b", worse)
    found = compare_runs(a, b)
    assert [(one.task, one.queries) for one in found] == [
        ("one", 200),
        ("two", 200),
        (AVERAGE, 400),
    ]
    assert found[0].difference.estimate.high < 0
    assert {one.task for one in regressions(found)} == {"one", AVERAGE}
    assert regressions(compare_runs(a, a)) == []
    assert regressions(compare_runs(b, a)) == []  # better is no regression
    assert {one.task for one in regressions(compare_runs(b, a, "mismatch"))} == {"one", AVERAGE}


def test_one_bad_looking_task_of_many_is_not_yet_a_regression(tmp_path) -> None:
    """Its p value of about 0.03 would be one by itself, but not among twelve."""
    base = {f"t{n}": [1.0, 0.0] * 20 for n in range(12)}
    a = stored(tmp_path / "a", base)
    b = stored(tmp_path / "b", base | {"t0": [0.0, 0.0] * 5 + [1.0, 0.0] * 15})
    found = compare_runs(a, b)
    assert 0.005 < found[0].difference.p_value < 0.05
    assert "t0" not in {one.task for one in regressions(found)}


def test_a_collapse_of_all_tasks_is_seen_however_many_there_are(tmp_path) -> None:
    base = {f"t{n}": [1.0] * 8 for n in range(101)}
    a = stored(tmp_path / "a", base)
    b = stored(tmp_path / "b", dict.fromkeys(base, [0.0] * 8))
    assert len(regressions(compare_runs(a, b))) == len(base) + 1


def test_only_shared_queries_count_and_other_judgements_are_refused(tmp_path) -> None:
    a = stored(tmp_path / "a", {"one": [1, 1, 0]})
    (one,) = compare_runs(a, stored(tmp_path / "b", {"one": [0, 1]}))
    assert (one.queries, one.lost) == (2, 1)
    with pytest.raises(DatasetError, match="other judgements"):
        compare_runs(a, stored(tmp_path / "c", {"one": [1, 1, 0]}, "k"))
    with pytest.raises(DatasetError, match="share no task"):
        compare_runs(a, stored(tmp_path / "d", {"two": [1, 1, 0]}))
    with pytest.raises(DatasetError, match="no task of"):
        compare_runs(a, a, "ndcg@3")
    with pytest.raises(DatasetError, match="no run of"):
        compare_runs(a, tmp_path)


def test_tasks_that_the_other_run_lacks_are_found(tmp_path) -> None:
    a = stored(tmp_path / "a", {"one": [1, 0], "two": [1], "empty": []})
    b = stored(tmp_path / "b", {"one": [1, 0]})
    assert [one.task for one in tasks_lost(a, b)] == ["two"]
    assert tasks_lost(b, a) == []


def test_runs_that_share_no_query_are_not_compared(tmp_path) -> None:
    """No difference would be found among none."""
    a = stored(tmp_path / "a", {"one": [1, 1], "two": [1], "empty": []})
    assert [one.task for one in compare_runs(a, a)] == ["one", "two", AVERAGE]
    b = stored(tmp_path / "b", {"one": [0, 0], "two": []})
    with pytest.raises(DatasetError, match=r"share no query of two \(local\)"):
        compare_runs(a, b)
    for text in ("[]", '{"query": "q0"}'):
        (b / "scores/two.local.jsonl").write_text(text + "\n")
        with pytest.raises(DatasetError, match=r"cannot be read|lack hit@5"):
            compare_runs(a, b)


def test_results_survive_the_disk(tmp_path) -> None:
    written = results(task("one", [1.0, 0.0]))
    write_results(written, tmp_path)
    assert read_results(tmp_path) == written == read_results(tmp_path / "run.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hit@5=0.4", Threshold("hit@5", 0.4)),
        ("a:b:headline=1", Threshold("headline", 1.0, "a:b")),
        ("cirr_task7:mismatch=.1", Threshold("mismatch", 0.1, "cirr_task7")),
    ],
)
def test_thresholds_are_read(text, expected) -> None:
    assert parse_threshold(text) == expected


@pytest.mark.parametrize(
    "text", ["hit@5", "hit@5=x", "=1", "0.5", "hits=1", "hit@5=nan", "headline=inf"]
)
def test_other_thresholds_are_refused(text) -> None:
    with pytest.raises(ValueError, match=r"no metric|no number"):
        parse_threshold(text)


def test_thresholds_hold_for_means_and_tasks_and_turn_round_for_mismatch() -> None:
    found = results(task("one", [1.0, 0.0]), task("two", [1.0, 1.0]))

    def fails(text: str) -> bool:
        return bool(failures(found, [parse_threshold(text)]))

    assert not fails("hit@5=0.75")
    assert fails("headline=0.76")
    assert fails("one:hit@5=0.6")
    assert not fails("two:hit@5=1")
    assert not fails("mismatch=0.2")
    assert fails("mismatch=0.19")
    assert "no task has it" in failures(found, [parse_threshold("ndcg@10=0")])[0]


def test_thresholds_are_missed_where_nothing_is_judged() -> None:
    for text in ("headline=0", "mismatch=1", "one:hit@5=0"):
        threshold = parse_threshold(text)
        assert failures(results(task("one", []), task("two", [1.0])), [threshold]) == [
            f"{text}: no query is judged of one (local)"
        ]
        for nothing in (results(task("one", [])), replace(results(task("one", [])), tasks=())):
            assert failures(nothing, [threshold]) == [f"{text}: no query is judged"]


def test_published_rows_stand_beside_ours_with_their_pool() -> None:
    table = headline_table(
        results(task("cirr_task7", [1.0, 0.0]), task("edis_task2", [1.0]), dataset="mbeir-test")
    )
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["MM-Embed (global pool, 5.6 M)"] == "50.0"
    assert row["CLIP_SF-L (local pools)"] == "45.3"
    last = dict(zip(table.columns, table.rows[-1], strict=True))
    assert last["U-MARVEL-7B (local pools)"] == "63.2"
    assert "MM-Embed" not in " ".join(headline_table(results(task("x", [1.0]))).columns)


def test_published_averages_are_those_of_their_tasks() -> None:
    from mmesh.evaluation.report.published import MBEIR

    for one in MBEIR:
        if one.tasks and one.average:
            assert np.mean(list(one.tasks.values())) == pytest.approx(one.average, abs=0.06)


def test_names_and_texts_cannot_break_the_page() -> None:
    evil = "<script>|x"
    found = results(task(evil, [1.0]))
    assert "<script>" not in page_of(found, [])
    assert "\\|x" in markdown_page(found)
    assert markdown_of(Table("t", ["a|b"], [["c"]])).count("\\|") == 1


def test_the_worst_take_turns_among_tasks(tmp_path) -> None:
    query = Query("q", "x", None, "w")
    poor = [Poor("a", "local", query, 0.0, (), ()) for _ in range(30)]
    poor += [Poor("b", "local", query, 0.0, (), ()) for _ in range(5)]
    chosen = choose(poor)
    assert (len(chosen), sum(one.task == "b" for one in chosen)) == (20, 5)


def test_what_is_no_picture_has_no_thumbnail(pictures) -> None:
    assert thumbnail(b"nothing") == ""
    assert 100 < len(thumbnail(pictures.png(1, 480))) < 20_000
    assert thumbnail(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n") == ""
