"""The folder of a run: what may go on in it, and what is refused before anything is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image as Pillow

from mmesh.aio import AsyncClient
from mmesh.cli.commands.evaluate import evaluate
from mmesh.errors import CollectionExists
from mmesh.evaluation.datasets.dataset import DatasetError
from mmesh.evaluation.datasets.own import Own
from mmesh.evaluation.folder import held
from mmesh.evaluation.live.contents import candidates_of
from mmesh.evaluation.live.filling import seen_before
from mmesh.evaluation.rejections import Rejections
from mmesh.evaluation.run import Evaluation, Place
from mmesh.evaluation.survey import survey
from mmesh.evaluation.whole_files import written_whole

Run = Callable[..., tuple[int, str]]
WORDS = ("harbour", "glacier", "violin")


def write_queries(root: Path, **changes: object) -> None:
    """Write the queries, the first one with changes."""
    rows: list[dict[str, object]] = [
        {"id": f"q-{word}", "text": word, "relevant": [f"c-{word}"]} for word in WORDS
    ]
    rows[0] |= changes
    (root / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    pool = [{"id": f"c-{word}", "text": f"a {word}"} for word in WORDS]
    (root / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pool))
    write_queries(root)
    return root


@pytest.fixture
def run(mesh, data, collection, tmp_path, monkeypatch) -> Run:
    monkeypatch.setenv("MMESH_TARGET_ADDRESS", mesh.address)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)

    def start(*options: object) -> tuple[int, str]:
        arguments = [data, "--collection", collection, *options]
        done = CliRunner().invoke(evaluate, [str(one) for one in arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.output
        return done.exit_code, done.output

    return start


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "changes",
    [
        {"text": "nonsense"}, {"instruction": "Find the opposite."}, {"target": "image"},
        {"id": "q-other"}, {"image": "a.png"},
    ],
    ids=lambda one: next(iter(one)),
)  # fmt: skip
def test_old_answers_are_not_taken_for_those_of_other_queries(run, data, changes) -> None:
    assert run("--out", "out")[0] == 0
    before = contents(Path("out"))
    write_queries(data, **changes)
    code, output = run("--out", "out")
    assert code == 1
    assert "another evaluation (query_digest); --restart begins anew" in output
    assert contents(Path("out")) == before


def test_old_answers_are_not_taken_for_those_of_another_picture_by_the_same_name(
    run, data, pictures
) -> None:
    write_queries(data, image="a.png")
    (data / "a.png").write_bytes(pictures.encode(Pillow.new("RGB", (8, 8), "red"), "PNG"))
    assert run("--out", "out")[0] == 0
    (data / "a.png").write_bytes(pictures.encode(Pillow.new("RGB", (9, 8), "blue"), "BMP"))
    code, output = run("--out", "out")
    assert code == 1
    assert "another evaluation (query_digest); --restart begins anew" in output


def test_queries_that_say_the_same_in_another_place_are_the_same(run, data, tmp_path) -> None:
    write_queries(data, image="pictures/a.png")
    assert run("--out", "out")[0] == 0
    place = tmp_path / "elsewhere"
    place.mkdir()
    data.rename(place / "data")
    data.symlink_to(place / "data")
    write_queries(data, image="pictures/a.png", relevant=["c-violin"])  # judgements: always read
    assert run("--out", "out")[0] == 0


def test_another_instruction_is_another_run_in_another_folder(run) -> None:
    assert run()[0] == 0
    assert run("--instruction", "Find the opposite.")[0] == 0
    first, second = Path("mmesh-evaluations").iterdir()
    assert first.name[:-8] == second.name[:-8] == "data-"
    notes = [json.loads((one / "run.json").read_text())["notes"] for one in (first, second)]
    assert sum("Find the opposite." in note for one in notes for note in one) == 1
    assert run("--out", first)[0] + run("--out", second)[0] == 1


def test_exact_is_refused_of_a_collection_that_is_not(run) -> None:
    assert run("--out", "out")[0] == 0
    before = contents(Path("out"))
    for again in ((), ("--restart",)):
        code, output = run("--out", "out", "--exact", *again)
        assert code == 1
        assert "is indexed by its size; name another with --collection" in output
        assert contents(Path("out")) == before
    assert run("--out", "exact", "--exact", "--collection", "eval-exact")[0] == 0
    assert run("--out", "exact", "--exact", "--collection", "eval-exact")[0] == 0


class OfAnotherModel(AsyncClient):
    """Answers as a mesh of several encoders does of a collection that another one filled."""

    async def create_collection(self, name: str, *_: object, **__: object) -> None:  # type: ignore[override]
        raise CollectionExists(f"collection {name!r} exists for model 'm' of dim 3")


async def test_a_model_is_refused_of_a_collection_of_another(
    mesh, data, collection, tmp_path
) -> None:
    place = Place(tmp_path / "out", collection=collection, model="other")
    async with OfAnotherModel(mesh.address) as client:
        with pytest.raises(DatasetError, match=r"--model other: the collection .* is there and of"):
            await Evaluation(client, Own(data), place).run()
    assert not place.folder.exists()


def test_a_manifest_of_an_older_version_is_refused_until_restart(run) -> None:
    assert run("--out", "out")[0] == 0
    manifest = Path("out/evaluation.json")
    values = json.loads(manifest.read_text())
    del values["query_digest"]
    manifest.write_text(json.dumps(values))
    code, output = run("--out", "out")
    assert code == 1
    assert "of an older version that noted no query_digest; --restart begins anew" in output
    assert run("--out", "out", "--restart")[0] == 0


@pytest.mark.parametrize("text", ["[]", "null", "{", "3", "\0\0"])
def test_a_damaged_manifest_is_not_guessed_at(run, text) -> None:
    assert run("--out", "out")[0] == 0
    Path("out/evaluation.json").write_text(text)
    code, output = run("--out", "out")
    assert code == 1
    assert "holds answers of another evaluation" in output


def test_a_run_is_not_its_own_baseline(run, tmp_path) -> None:
    assert run("--out", "out")[0] == 0
    before = contents(Path("out"))
    Path("link").symlink_to("out")
    Path("result.json").symlink_to("out/run.json")
    for baseline in (
        "out",
        "out/run.json",
        tmp_path / "out",
        "link",
        "link/run.json",
        "result.json",
    ):
        for again in ((), ("--restart",)):
            code, output = run("--out", "out", "--baseline", baseline, *again)
            assert code == 1
            assert "give this run another one with --out FOLDER" in output
            assert contents(Path("out")) == before
    code, output = run("--out", "new", "--baseline", "out")
    assert code == 0, output


def test_a_run_that_lacks_queries_of_its_baseline_fails(run, data, pictures) -> None:
    """What it lacks may be what became worse."""
    write_queries(data, image="a.png")
    (data / "a.png").write_bytes(pictures.png(0))
    assert run("--out", "out")[0] == 0
    (data / "a.png").unlink()
    code, output = run("--out", "new", "--baseline", "out")
    assert code == 1
    assert "this run lacks 1 of the 3 queries of the baseline: all (local)" in output
    _, output = compare("out", "new")
    assert "B lacks 1 of the 3 queries of A: all (local)" in output


def test_a_run_that_lacks_a_task_of_its_baseline_fails(run) -> None:
    """Unless it was asked for others: a gate must not pass by looking away."""
    assert run("--out", "out")[0] == 0
    path = Path("out/run.json")
    values = json.loads(path.read_text())
    values["tasks"].append(values["tasks"][0] | {"task": "other"})
    path.write_text(json.dumps(values))
    code, output = run("--out", "new", "--baseline", "out")
    assert code == 1
    assert "this run lacks a task of the baseline: other (local), 3 queries" in output
    assert run("--out", "one", "--baseline", "out", "--tasks", "all")[0] == 0
    _, output = compare("out", "new")
    assert "B lacks a task of A: other (local), 3 queries" in output


def compare(a: str, b: str) -> tuple[int, str]:
    done = CliRunner().invoke(evaluate, ["compare", a, b])
    return done.exit_code, done.output


HALF = "\ud800"


@pytest.mark.parametrize(
    ("pool", "query", "where"),
    [
        ({"id": HALF}, {}, "pool.jsonl:1"),
        ({"pool": HALF}, {}, "pool.jsonl:1"),
        ({}, {"id": HALF}, "queries.jsonl:1"),
        ({}, {"text": f"a {HALF}"}, "queries.jsonl:1"),
        ({}, {"instruction": HALF}, "queries.jsonl:1"),
        ({}, {"task": HALF}, "queries.jsonl:1"),
        ({}, {"relevant": ["c-harbour", HALF]}, "queries.jsonl:1"),
    ],
)
def test_a_lone_surrogate_is_told_before_anything_is_sent(
    run, data, client, collection, pool, query, where
) -> None:
    rows = [{"id": f"c-{word}", "text": word} for word in WORDS]
    text = "".join(json.dumps(row) + "\n" for row in (rows[0] | pool, *rows[1:]))
    (data / "pool.jsonl").write_text(text)
    write_queries(data, **query)
    code, output = run("--out", "out")
    assert code == 1
    assert f"{where} holds the lone surrogate '\\ud800'" in output
    assert sum(client.get_collection(collection).candidates.values()) == 0


def test_pictures_that_no_file_can_be_are_counted_as_missing(run, data) -> None:
    rows: list[dict[str, object]] = [{"id": f"c-{word}", "text": word} for word in WORDS]
    rows += [{"id": "half", "text": HALF}, {"id": "nul", "image": "\0"}, {"id": "h", "image": HALF}]
    (data / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_queries(data, image=f"{HALF}.png")
    code, output = run("--out", "out")
    assert code == 0, output
    found = json.loads(Path("out/run.json").read_text())
    assert found["rejections"]["counts"] == {"INVALID_FIELD": 1, "MISSING_PICTURE": 3}
    assert (found["tasks"][0]["queries"], found["tasks"][0]["not_asked"]) == (2, 1)


@pytest.mark.parametrize(
    "line", [b"\0\0\0\0", b"[]", b"{}", b'{"hits": 3}', b'{"hits": [["a"]]}', b"\xff"]
)
def test_a_damaged_answer_is_told_by_file_and_line(run, line) -> None:
    assert run("--out", "out")[0] == 0
    answers = Path("out/answers/all.local.jsonl")
    whole = answers.read_bytes()
    answers.write_bytes(whole + line + b"\n")
    code, output = run("--out", "out")
    assert code == 1
    assert "all.local.jsonl:4 is damaged; without this line its query is asked again" in output
    answers.write_bytes(whole)
    assert run("--out", "out")[0] == 0


def test_two_commands_do_not_work_in_one_folder(run) -> None:
    assert run("--out", "out")[0] == 0
    before = contents(Path("out"))
    with held(Path("out")):
        for again in ((), ("--restart",)):
            code, output = run("--out", "out", *again)
            assert code == 1
            assert "another `mmesh evaluate` works in it" in output
            assert contents(Path("out")) == before
    assert run("--out", "out")[0] == 0


def test_a_file_is_on_disk_before_it_takes_its_place(tmp_path, monkeypatch) -> None:
    """Else a power cut may leave an empty one where a whole one was."""
    done: list[str] = []

    def noting(name: str) -> None:
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given: (done.append(name), real(*given))[1])

    noting("fsync")
    noting("replace")
    with written_whole(tmp_path / "file") as file:
        file.write("x")
    assert done == ["fsync", "replace"]
    assert (tmp_path / "file").read_text() == "x"


@pytest.fixture
def thrice(data) -> Path:
    """Data whose pool has an id three times, first without its picture."""
    rows: list[dict[str, object]] = [{"id": "t", "image": "gone.png"}]
    rows += [{"id": "t", "text": text} for text in ("first", "second")]
    rows += [{"id": f"c-{word}", "text": word} for word in WORDS]
    (data / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def test_a_row_without_picture_does_not_stand_in_the_way_of_one_of_its_id(
    run, thrice, client, collection
) -> None:
    assert run("--out", "out")[0] == 0
    (stored,) = client.batch_get_candidates(collection, ["t"])
    assert stored.content.text == "first"
    counts = json.loads(Path("out/run.json").read_text())["rejections"]["counts"]
    assert counts == {"MISSING_PICTURE": 1, "DUPLICATE_ID": 1}


@pytest.mark.parametrize(("rows", "taken"), [(0, "first"), (1, "first"), (2, ""), (3, "")])
def test_one_row_of_an_id_is_taken_wherever_a_fill_goes_on(thrice, rows, taken) -> None:
    dataset = Own(thrice)
    found, left = survey(dataset), list(dataset.pool())[rows:]
    seen = seen_before(dataset, found, rows)
    candidates = candidates_of(left, seen, found.twice, Rejections())
    assert "".join(one.content.text for one in candidates if one.id == "t") == taken
