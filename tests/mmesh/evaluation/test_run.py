"""Evaluations on the live mesh, by the library: pools, filters, refusals, resumption."""

from __future__ import annotations

import gzip
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmesh.aio import AsyncClient
from mmesh.candidates import Candidate
from mmesh.content import Content, Modality
from mmesh.errors import CollectionNotFound
from mmesh.evaluation.cost import TooMuch, is_local, size
from mmesh.evaluation.datasets.beir import Beir
from mmesh.evaluation.datasets.circo import Circo
from mmesh.evaluation.datasets.cirr import Cirr
from mmesh.evaluation.datasets.dataset import DatasetError
from mmesh.evaluation.datasets.own import Own
from mmesh.evaluation.folder import OtherEvaluation
from mmesh.evaluation.live.answers import Answer, AnswerLog, Found, read_answers
from mmesh.evaluation.options import Options, Target, Way
from mmesh.evaluation.report.writing import write_report
from mmesh.evaluation.results import read_results, read_scores
from mmesh.evaluation.run import Evaluation, Limits, Place


def jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def own(tmp_path, pictures) -> Path:
    """Two tasks with pools of their own: words, and pictures beside the same words."""
    root = tmp_path / "own"
    words = ["harbour", "glacier", "violin", "tractor", "orchid", "comet"]
    pool = [{"id": f"t-{w}", "text": f"a {w}", "pool": "words"} for w in words]
    for number, word in enumerate(words[:3]):
        (root / f"{word}.png").parent.mkdir(exist_ok=True)
        (root / f"{word}.png").write_bytes(pictures.png(number))
        pool.append({"id": f"i-{word}", "image": f"{word}.png", "pool": "pictures"})
    queries = [
        {"id": f"q-{w}", "text": f"a {w}", "relevant": [f"t-{w}"], "task": "words"} for w in words
    ] + [
        {
            "id": f"p-{w}",
            "image": f"{w}.png",
            "relevant": [f"i-{w}"],
            "task": "pictures",
            "target": "image",
        }
        for w in words[:3]
    ]
    jsonl(root / "pool.jsonl", pool)
    jsonl(root / "queries.jsonl", queries)
    return root


@pytest.fixture
async def sdk(mesh, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    async with AsyncClient(mesh.address) as client:
        yield client


@pytest.fixture
def evaluation(sdk, own, collection, tmp_path):
    def make(folder: str = "out", **parts: object) -> Evaluation:
        place = Place(tmp_path / folder, collection=collection)
        return Evaluation(sdk, Own(own), place, **parts)  # type: ignore[arg-type]

    return make


async def test_each_task_is_measured_in_its_pool_and_in_the_union(evaluation, tmp_path) -> None:
    results = await evaluation().run()
    assert [(one.task, one.way) for one in results.tasks] == [
        ("words", "local"),
        ("words", "union"),
        ("pictures", "local"),
        ("pictures", "union"),
    ]
    for one in results.tasks:
        assert one.figures["hit@10"].value == 1
        assert one.latency_ms["total"][0] > 0
    local = results.of("pictures", "local")
    assert local is not None
    assert local.share == {"text": 0, "image": 1, "image_text": 0}
    answers = read_answers(tmp_path / "out/answers/words.local.jsonl")
    assert {len(answer.hits) for answer in answers.values()} == {6}
    union = read_answers(tmp_path / "out/answers/words.union.jsonl")
    assert {len(answer.hits) for answer in union.values()} == {9}
    assert results.averages["local"].value == 1
    assert read_results(tmp_path / "out") == results
    assert read_scores(tmp_path / "out", "words.local")["q-comet"]["hit@10"] == 1


async def test_run_files_have_six_and_seven_columns(evaluation, tmp_path) -> None:
    await evaluation().run()
    trec = (tmp_path / "out/runs/words.local.trec").read_text().splitlines()
    assert len(trec) == 6 * 6
    query, q0, candidate, rank, score, name = trec[0].split()
    assert (query, q0, candidate, rank, name) == (
        "q-harbour",
        "Q0",
        "t-harbour",
        "1",
        "words.local",
    )
    assert 0.9 < float(score) <= 1.01
    uniir = (tmp_path / "out/runs/words.local.uniir.txt").read_text().splitlines()
    assert [line.rpartition(" ")[0] for line in uniir] == trec


async def test_a_finished_run_is_scored_again_without_asking_the_mesh(
    evaluation, sdk, own, collection, tmp_path
) -> None:
    first = await evaluation().run()
    token = (await sdk.get_collection(collection)).token
    before = {p: p.stat().st_size for p in (tmp_path / "out/answers").iterdir()}
    assert await evaluation().run() == first
    assert (await sdk.get_collection(collection)).token == token
    assert {p: p.stat().st_size for p in (tmp_path / "out/answers").iterdir()} == before


async def test_targets_wanted_and_each(evaluation) -> None:
    wanted = await evaluation("wanted", options=Options(target=Target.WANTED)).run()
    union = wanted.of("pictures", "union")
    assert union is not None
    assert union.share["image"] == 1
    assert union.target_sources == {"requested": 3}
    each = await evaluation("each", options=Options(target=Target.EACH)).run()
    found = each.of("pictures", "union")
    assert found is not None
    assert found.share["text"] > 0
    assert found.figures["hit@10"].value == 1


async def test_a_judge_scores_the_first_hits(evaluation) -> None:
    options = Options((Way.LOCAL,), rerank=4)
    results = await evaluation("judged", options=options).run()
    words = results.of("words", "local")
    assert words is not None
    assert words.pairs == 6 * 4
    assert "rerank" in words.latency_ms
    assert results.judge


async def test_answers_of_two_judges_make_no_figures(evaluation, tmp_path) -> None:
    options = Options((Way.LOCAL,), rerank=4)
    await evaluation("judged", options=options).run()
    path = tmp_path / "judged" / "answers" / "words.local.jsonl"
    first, *others = map(json.loads, path.read_text().splitlines())
    jsonl(path, [first | {"judge": "another"}, *others])
    with pytest.raises(OtherEvaluation, match=r"another and .* judged"):
        await evaluation("judged", options=options).run()


async def test_what_else_is_in_a_collection_is_not_found_though_rows_lack_their_pictures(
    evaluation, own, sdk, collection
) -> None:
    """Rows without picture count as rows of the pool, and there were as many of others."""
    with (own / "pool.jsonl").open("a") as file:
        for number in range(3):
            file.write(f'{{"id": "gone-{number}", "image": "gone.png", "pool": "words"}}\n')
    words = ["harbour", "glacier", "violin"]
    found = [Candidate(f"foreign-{word}", Content.of(f"a {word}")) for word in words]
    await sdk.create_collection(collection)
    await sdk.upsert_candidates(collection, found)
    results = await evaluation(options=Options((Way.UNION,))).run()
    assert sum(results.candidates.values()) == 9
    answers = read_answers(evaluation().place.folder / "answers" / "words.union.jsonl")
    assert not any(hit.id.startswith("foreign") for one in answers.values() for hit in one.hits)


async def test_bad_rows_are_counted_and_named_and_the_rest_is_measured(
    evaluation, own, tmp_path
) -> None:
    with (own / "pool.jsonl").open("a") as file:
        file.write('{"id": "t-comet", "text": "again", "pool": "words"}\n')
        file.write('{"id": "gone", "image": "gone.png", "pool": "words"}\n')
        file.write('{"id": "odd", "image": "queries.jsonl", "pool": "words"}\nnot json\n')
    with (own / "queries.jsonl").open("a") as file:
        rows = [
            {"id": "lost", "image": "lost.png", "relevant": ["t-comet"], "task": "words"},
            {"id": "vain", "text": "x", "task": "words"},
            {"id": "far", "text": "x", "relevant": ["nobody"], "task": "words"},
            {"id": "bad", "text": "\0", "relevant": ["t-comet"], "task": "words"},
        ]
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    results = await evaluation(options=Options((Way.LOCAL,))).run()
    assert results.rejections["counts"] == {
        "BROKEN_ROW": 1,
        "DUPLICATE_ID": 1,
        "INVALID_IMAGE": 1,
        "MISSING_PICTURE": 2,
    }
    said = {kind: (where, why) for where, kind, why in results.rejections["examples"]}
    assert said["BROKEN_ROW"][0].endswith("pool.jsonl:13")
    assert said["DUPLICATE_ID"][0].endswith("pool.jsonl:10")
    assert said["INVALID_IMAGE"][0] == "odd"
    words = results.of("words", "local")
    assert words is not None
    assert (words.not_asked, words.unjudged, words.unknown, words.refused) == (1, 1, 1, 1)
    assert words.queries == 6 + 2  # with the one that asks for what the pool lacks, and the refused
    assert words.figures["hit@10"].value == 6 / 8


async def test_answers_of_another_evaluation_are_not_mixed_in(evaluation) -> None:
    await evaluation().run()
    with pytest.raises(DatasetError, match=r"another evaluation \(options\)"):
        await evaluation(options=Options(target=Target.WANTED)).run()
    again = evaluation(options=Options(target=Target.WANTED))
    await again.restart()
    assert (await again.run()).options["target"] == "wanted"


async def test_what_cannot_fit_is_refused_unless_told_otherwise(
    evaluation, sdk, collection, tmp_path
) -> None:
    await sdk.update_collection(collection, max_candidates=5)
    with pytest.raises(TooMuch, match="may hold 5 candidates"):
        await evaluation().run()
    assert (await sdk.get_collection(collection)).candidates[Modality.TEXT] == 0
    await sdk.update_collection(collection, max_candidates=0)
    slow = evaluation(limits=Limits(max_hours=1e-9))
    with (tmp_path / "own/pool.jsonl").open("a") as file:
        file.write(
            "".join(json.dumps({"id": f"m{n}", "text": f"n {n}"}) + "\n" for n in range(300))
        )
    with pytest.raises(TooMuch, match="more than 1e-09 hours"):
        await slow.run()
    results = await evaluation(limits=Limits(max_hours=1e-9, regardless=True)).run()
    assert results.candidates["text"] == 306


async def test_an_answer_that_was_cut_off_is_asked_again(evaluation, tmp_path) -> None:
    first = await evaluation().run()
    path = tmp_path / "out/answers/words.local.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:30])
    again = await evaluation().run()
    assert again.of("words", "local").figures == first.of("words", "local").figures  # type: ignore[union-attr]
    assert len(read_answers(path)) == 6


async def test_judgements_of_what_is_not_there_are_counted(sdk, collection, tmp_path) -> None:
    """As in qrels of another split, with which all figures would be of a few queries."""
    root = tmp_path / "judged"
    jsonl(root / "pool.jsonl", [{"id": f"c{n}", "text": f"thing {n}"} for n in range(3)])
    jsonl(root / "queries.jsonl", [{"id": f"q{n}", "text": f"thing {n}"} for n in range(3)])
    (root / "qrels.tsv").write_text("q0 0 c0 1\nq1 0 gone 1\nx1 0 c1 1\nx2 0 c2 1\nx2 0 c1 1\n")
    place = Place(tmp_path / "out", collection=collection)
    evaluation = Evaluation(sdk, Own(root), place)
    (task,) = (await evaluation.run()).tasks
    assert (task.queries, task.unjudged, task.unknown, task.unknown_queries) == (2, 1, 1, 2)
    await write_report(sdk, read_results(tmp_path / "out"), evaluation.poor, tmp_path / "out")
    assert "judged queries that there are not" in (tmp_path / "out/report.md").read_text()


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
async def test_a_packed_file_that_is_cut_off_is_told_before_anything_is_sent(
    sdk, tmp_path, name
) -> None:
    root = tmp_path / "beir"
    jsonl(root / "corpus.jsonl", [{"_id": f"c{n}", "text": f"thing {n}"} for n in range(40)])
    jsonl(root / "queries.jsonl", [{"_id": f"q{n}", "text": f"thing {n}"} for n in range(40)])
    (root / "qrels").mkdir()
    (root / "qrels/test.tsv").write_text("".join(f"q{n}\tc{n}\t1\n" for n in range(40)))
    packed = gzip.compress((root / name).read_bytes())
    (root / name).unlink()
    (root / f"{name}.gz").write_bytes(packed[:-12])
    evaluation = Evaluation(sdk, Beir(root), Place(tmp_path / "out"))
    with pytest.raises(DatasetError, match=rf"{name}\.gz is cut off after line"):
        await evaluation.run()
    with pytest.raises(CollectionNotFound):
        await sdk.get_collection(evaluation.collection_name)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
async def test_on_a_full_disk_each_file_of_before_is_kept_and_named(
    evaluation, sdk, tmp_path
) -> None:
    out, one = tmp_path / "out", evaluation()

    async def written() -> None:
        await write_report(sdk, await one.run(), one.poor, out)

    await written()
    for name in (
        "scores/words.local.jsonl", "runs/words.local.trec", "runs/words.local.uniir.txt",
        "run.json", "report.html", "report.md",
    ):  # fmt: skip
        before = (out / name).read_bytes()
        (out / f"{name}.new").symlink_to("/dev/full")
        with pytest.raises(OSError, match=f"No space left on device: '{out / name}'"):
            await written()
        assert (out / name).read_bytes() == before
        assert not list(out.rglob("*.new"))
    await written()


@contextmanager
def no_room_beyond(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def append(path: Path, *answers: Answer) -> None:
    with AnswerLog(path) as log:
        for one in answers:
            log.append([one])


def test_answers_that_found_no_room_are_asked_again_and_those_before_are_kept(tmp_path) -> None:
    path, whole = tmp_path / "log.jsonl", Answer("q", refusal="x")
    with no_room_beyond(100_000), pytest.raises(OSError, match=str(path)):
        append(path, whole, Answer("r", refusal="x" * 200_000))
    assert path.stat().st_size == 100_000
    append(path, Answer("s"))
    assert read_answers(path) == {"q": whole, "s": Answer("s")}


async def test_a_torn_note_of_what_was_asked_is_not_guessed_at(evaluation, tmp_path) -> None:
    await evaluation().run()
    manifest = tmp_path / "out/evaluation.json"
    manifest.write_text(manifest.read_text()[:100])
    with pytest.raises(DatasetError, match="holds answers of another evaluation"):
        await evaluation().run()


@pytest.fixture
def drawn(tmp_path, pictures) -> Path:
    """CIRR and CIRCO's test split, of the same six pictures."""
    root = tmp_path / "drawn"
    names = {f"dev-{number}": f"./dev/dev-{number}.png" for number in range(6)}
    for number in range(6):
        for path in (
            root / f"cirr/img_raw/dev/dev-{number}.png",
            root / f"circo/COCO2017_unlabeled/unlabeled2017/{number:012d}.jpg",
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pictures.png(number))
    captions = [
        {
            "pairid": n,
            "reference": f"dev-{n}",
            "target_hard": f"dev-{n + 1}",
            "caption": "lighter",
            "img_set": {"members": [f"dev-{m}" for m in range(3)]},
        }
        for n in range(2)
    ]
    asked = [{"id": n, "reference_img_id": n, "relative_caption": "lighter"} for n in range(3)]
    for path, content in (
        ("cirr/captions/cap.rc2.val.json", captions),
        ("cirr/image_splits/split.rc2.val.json", names),
        ("circo/annotations/test.json", asked),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(json.dumps(content))
    return root


async def test_cirr_leaves_references_out_and_searches_within_groups(
    sdk, drawn, collection, tmp_path
) -> None:
    place = Place(tmp_path / "out", collection=collection)
    results = await Evaluation(sdk, Cirr(drawn / "cirr"), place).run()
    assert [one.task for one in results.tasks] == ["cirr-val", "cirr-val-subset"]
    whole = read_answers(tmp_path / "out/answers/cirr-val.local.jsonl")
    assert {hit.id for hit in whole["0"].hits} == {f"dev-{n}" for n in range(1, 6)}
    within = read_answers(tmp_path / "out/answers/cirr-val-subset.local.jsonl")
    assert {hit.id for hit in within["0"].hits} == {"dev-1", "dev-2"}
    assert {hit.id for hit in within["1"].hits} == {"dev-0", "dev-2"}


async def test_a_split_without_judgements_gives_what_its_server_takes(
    sdk, drawn, collection, tmp_path
) -> None:
    place = Place(tmp_path / "out", collection=collection)
    evaluation = Evaluation(sdk, Circo(drawn / "circo", "test"), place)
    results = await evaluation.run()
    assert results.tasks == ()
    file = tmp_path / "out/runs/circo-test.local.submission.json"
    ranked = json.loads(file.read_text())
    assert sorted(ranked) == ["0", "1", "2"]
    assert sorted(ranked["0"]) == list(range(6))
    await write_report(sdk, results, evaluation.poor, tmp_path / "out")
    assert "No task is judged" in (tmp_path / "out/report.html").read_text()


def test_a_torn_line_is_cut_off_when_a_log_is_opened(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    answer = Answer("q", (Found("a", 0.5, Modality.TEXT),), {"total": 0.1}, 0, "full", ("X",))
    path.write_text(answer.as_line() + '{"query": "r", ')
    with AnswerLog(path) as log:
        log.append([Answer("s", refusal="INVALID_FIELD: no")])
    assert read_answers(path) == {"q": answer, "s": Answer("s", refusal="INVALID_FIELD: no")}


def test_only_a_gateway_on_this_machine_is_held_against_its_memory() -> None:
    assert is_local("127.0.0.1:1")
    assert is_local("localhost:1")
    assert is_local("[::1]:1")
    assert not is_local("10.0.0.1:1")
    assert not is_local("")
    assert size(91_900_000_000) == "91.9 GB"


def test_target_each_goes_without_judge() -> None:
    with pytest.raises(ValueError, match="neither rerank nor merge"):
        Options(target=Target.EACH, rerank=5)
