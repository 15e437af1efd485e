"""`mmesh evaluate` as a process, against a real mesh, on a miniature M-BEIR of all 16 tasks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmesh.cli.commands.evaluate import evaluate
from mmesh.errors import CollectionNotFound
from tests.effort import needs_full_effort, patient

CANDIDATES, QUERIES = 9, 4
COMMAND = [sys.executable, "-c", "from mmesh.cli import main; main()", "evaluate"]
AT_10 = {"fashion200k_task0", "fashion200k_task3", "fashioniq_task7"}


class Runner:
    def __init__(self, address: str, state: Path) -> None:
        self.environment = os.environ | {
            "MMESH_TARGET_ADDRESS": address,
            "XDG_STATE_HOME": str(state),
            "COLUMNS": "250",
        }

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            [*COMMAND, *map(str, arguments)], env=self.environment, **pipes
        )

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=patient(60))
        return process.returncode, output, errors


@pytest.fixture(scope="module")
def run(mesh, tmp_path_factory) -> Runner:
    return Runner(mesh.address, tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def mbeir(mini_mbeir) -> Path:
    return mini_mbeir(CANDIDATES, QUERIES)


@pytest.fixture(scope="module")
def whole(run, mbeir, tmp_path_factory) -> Path:
    """The folder of an evaluation of all tasks, in local pools and the union."""
    folder = tmp_path_factory.mktemp("whole")
    code, output, errors = run(mbeir, "--out", folder)
    assert code == 0, errors
    assert f"{16 * CANDIDATES} candidates" in errors
    assert f"{16 * QUERIES * 2} searches" in errors
    assert "report: " in output
    return folder


def results_in(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "run.json").read_text())
    for task in found["tasks"]:
        del task["latency_ms"]
    return found


# -- UniIR's definitions, from its own files alone


def uniir_hit_rates(root: Path, run_file: Path, task: str, cuts: list[int]) -> dict[int, float]:
    positives: dict[str, set[str]] = {}
    for line in (root / f"qrels/test/mbeir_{task}_test_qrels.txt").read_text().splitlines():
        qid, _, did, relevance, _ = line.split()
        if int(relevance) > 0:
            positives.setdefault(qid, set()).add(did)
    retrieved: dict[str, list[str]] = {}
    for line in run_file.read_text().splitlines():
        qid, _, did, rank, _, _, task_id = line.split()
        assert task_id == task[-1]
        assert int(rank) == len(retrieved.setdefault(qid, [])) + 1
        retrieved[qid].append(did)
    found = {}
    for k in cuts:
        values = [float(bool(positives[q] & set(dids[:k]))) for q, dids in retrieved.items()]
        found[k] = round(sum(values) / len(values), 4)
    return found


def task_names(folder: Path) -> list[str]:
    return sorted(path.name.split(".")[0] for path in (folder / "runs").glob("*.local.trec"))


@pytest.mark.parametrize("way", ["local", "union"])
def test_figures_equal_uniirs_definitions_on_its_own_files(whole, mbeir, way) -> None:
    names = task_names(whole)
    assert len(names) == 16
    tasks = {task["task"]: task for task in results_in(whole)["tasks"] if task["way"] == way}
    values = set()
    for name in names:
        cuts = [10, 20, 50] if name in AT_10 else [1, 5, 10]
        expected = uniir_hit_rates(mbeir, whole / f"runs/{name}.{way}.uniir.txt", name, cuts)
        figures = tasks[name]["figures"]
        assert {k: round(figures[f"hit@{k}"]["value"], 4) for k in cuts} == expected
        assert tasks[name]["queries"] == QUERIES
        values |= set(expected.values())
    assert len(values) > 2  # neither all found nor none


def test_figures_equal_trec_eval_on_the_run_files(whole, mbeir) -> None:
    trec = pytest.importorskip("pytrec_eval", reason="trec_eval is absent: run `make setup`")
    for task in results_in(whole)["tasks"]:
        lines = (mbeir / f"qrels/test/mbeir_{task['task']}_test_qrels.txt").read_text().splitlines()
        qrels: dict[str, dict[str, int]] = {}
        for qid, _, did, grade, _ in map(str.split, lines):
            qrels.setdefault(qid, {})[did] = int(grade)
        scores: dict[str, dict[str, float]] = {}
        text = (whole / f"runs/{task['task']}.{task['way']}.trec").read_text()
        for qid, _, did, rank, _, _ in map(str.split, text.splitlines()):
            scores.setdefault(qid, {})[did] = -float(rank)
        found = trec.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.5,10"}).evaluate(scores)
        best = 10 if task["task"] in AT_10 else 5
        for ours, theirs in (("ndcg@10", "ndcg_cut_10"), (f"recall@{best}", f"recall_{best}")):
            mean = sum(one[theirs] for one in found.values()) / len(found)
            assert task["figures"][ours]["value"] == pytest.approx(mean, abs=1e-9)


def test_local_pools_hold_only_their_candidates_and_the_union_all(whole, mbeir) -> None:
    for name in task_names(whole):
        stem = f"mbeir_{name}_test" if name.startswith("mscoco") else f"mbeir_{name}"
        lines = (mbeir / f"cand_pool/local/{stem}_cand_pool.jsonl").read_text().splitlines()
        pool = {json.loads(line)["did"] for line in lines}
        found = (whole / f"runs/{name}.local.trec").read_text().splitlines()
        assert {line.split()[2] for line in found} <= pool
        assert len(found) == QUERIES * CANDIDATES
    union = (whole / "runs/cirr_task7.union.trec").read_text().splitlines()
    assert len({line.split()[2].split(":")[0] for line in union}) > 1


def test_the_report_can_be_mailed_and_names_the_pools_of_published_figures(whole) -> None:
    page = (whole / "report.html").read_text()
    assert len(page) < 2_000_000
    assert page.count("data:image/jpeg;base64,") > 20
    assert not re.search(r'(src|href)="(?!data:)', page)
    for words in (
        "MM-Embed (global pool, 5.6 M)", "CLIP_SF-L (local pools)", "U-MARVEL-7B", "52.7", "<svg",
        "20 worst queries", "infoseek_task8", "prompt 1 of each task", "mismatch",
    ):  # fmt: skip
        assert words in page, words
    text = (whole / "report.md").read_text()
    assert "| average |" in text
    assert "took the modality of" in text


@needs_full_effort
def test_killed_twice_and_resumed_it_reports_the_same(
    run, mbeir, whole, client, tmp_path, eventually
) -> None:
    name = "eval-killed"
    with suppress(CollectionNotFound):
        client.delete_collection(name)
    arguments = (mbeir, "--out", tmp_path / "out", "--collection", name)
    slowly = (*arguments, "--batch-size", "1", "--in-flight", "1")

    def stored() -> int:
        with suppress(CollectionNotFound):
            return sum(client.get_collection(name).candidates.values())
        return 0

    def answered() -> int:
        files = (tmp_path / "out/answers").glob("*.jsonl")
        return sum(len(path.read_text().splitlines()) for path in files)

    for reached in (lambda: stored() > 0, lambda: answered() > 20):
        process = run.start(*slowly)
        eventually(reached, "it is half-way")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert 20 < answered() < 16 * QUERIES * 2
    assert not (tmp_path / "out/run.json").exists()
    code, _, errors = run(*arguments)
    assert code == 0, errors
    assert answered() == 16 * QUERIES * 2
    ours, theirs = results_in(tmp_path / "out"), results_in(whole)
    assert ours.pop("collection") == name != theirs.pop("collection")
    assert ours == theirs
    for path in (whole / "runs").iterdir():  # scores may differ in the seventh digit
        files = (tmp_path / "out/runs" / path.name, path)
        first, second = ([row.split()[::3] for row in f.read_text().splitlines()] for f in files)
        assert [row[:2] for row in first] == [row[:2] for row in second]
    client.delete_collection(name)


def test_a_judge_changes_the_order_and_is_in_the_report(run, mbeir, whole, tmp_path) -> None:
    """One ingest serves both runs: the pool is not put in again."""
    code, _, errors = run(
        mbeir, "--out", tmp_path / "judged", "--rerank", "5", "--fail-below", "headline=1.01",
        "--fail-below", "cirr_task7:mismatch=1", "--baseline", whole,
    )  # fmt: skip
    assert code == 1
    assert "below: headline=1.01: is 0." in errors
    assert "mismatch" not in errors
    judged = results_in(tmp_path / "judged")
    assert judged["judge"]
    for task in judged["tasks"]:  # the shared mesh's judge reads no queries with pictures
        asks_with_text = task["task"][-1] in "012"
        outcome, pairs = ("full", QUERIES * 5) if asks_with_text else ("skipped", 0)
        assert (task["rerank_outcomes"], task["pairs"]) == ({outcome: QUERIES}, pairs)
    assert judged["collection"] == results_in(whole)["collection"]
    before, after = (
        folder / "runs/webqa_task1.local.trec" for folder in (whole, tmp_path / "judged")
    )
    assert before.read_text() != after.read_text()

    code, output = in_process("compare", whole, tmp_path / "judged", "--json")
    assert code == 0
    rows = json.loads(output)
    assert len(rows) == 16 * 2 + 2
    assert {row["task"] for row in rows if row["queries"] == 16 * QUERIES} == {"average"}
    code, output = in_process("compare", whole, whole / "run.json", "--metric", "ndcg@10")
    assert code == 0
    assert "0 of 34 rows" in output


def in_process(*arguments: object) -> tuple[int, str]:
    """Run what needs no process of its own."""
    done = CliRunner().invoke(evaluate, [str(one) for one in arguments])
    return done.exit_code, done.output


def test_mistakes_are_told_in_one_line(mesh, mbeir, whole, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run.json").write_text("{}")
    other = tmp_path / "other.json"
    other.write_text((whole / "run.json").read_text().replace("_task", "-of-another-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMESH_TARGET_ADDRESS", mesh.address)
        for arguments, words in (
            ((tmp_path / "empty",), "none of the data sets"),
            ((mbeir, "--tasks", "nothing"), "no task nothing"),
            ((mbeir, "--out", whole, "--target", "wanted", "--no-ingest"), "another evaluation"),
            ((mbeir, "--target", "each", "--rerank", "3"), "neither rerank nor merge"),
            ((mbeir, "--fail-below", "hits@5=1"), "no metric 'hits@5'"),
            ((mbeir, "--out", tmp_path / "run.json/x"), "Not a directory"),
            ((mbeir, "--baseline", other), "shares no task with mbeir-test"),
            (("compare", whole, tmp_path / "run.json"), "is no run of `mmesh evaluate`"),
        ):
            code, output = in_process(*arguments)
            assert code in (1, 2), output
            assert words in output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_fills_while_the_report_is_written_is_told_in_one_line(
    run, mbeir, whole
) -> None:
    before = (whole / "report.html").read_bytes()
    (whole / "report.html.new").symlink_to("/dev/full")
    code, _, errors = run(mbeir, "--out", whole)
    assert code == 1
    assert f"No space left on device: '{whole / 'report.html'}'" in errors
    assert errors.splitlines()[-1].endswith("the same command goes on from here")
    assert (whole / "report.html").read_bytes() == before
