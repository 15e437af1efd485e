"""mteb itself drives the live mesh, offline, by tasks whose data are made here.

Costs 15 s, most of it the import of mteb and of torch.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mteb = pytest.importorskip("mteb", reason="mteb is absent: run `make setup-mteb`")
datasets = pytest.importorskip("datasets", reason="mteb is absent: run `make setup-mteb`")

from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.sts import AbsTaskSTS  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.models import EncoderProtocol, SearchProtocol  # noqa: E402
from mteb.types import PromptType  # noqa: E402
from PIL import Image as Pillow  # noqa: E402

from mmesh.aio import AsyncClient  # noqa: E402
from mmesh.content import Modality  # noqa: E402
from mmesh.errors import FailedPrecondition  # noqa: E402
from mmesh.evaluation.datasets.own import Own  # noqa: E402
from mmesh.evaluation.live.answers import Found, read_answers  # noqa: E402
from mmesh.evaluation.mteb import MeshEncoder, MeshSearch, rows  # noqa: E402
from mmesh.evaluation.mteb.search import _scores  # noqa: E402
from mmesh.evaluation.options import Options, Target  # noqa: E402
from mmesh.evaluation.run import Evaluation, Place  # noqa: E402

COLOURS = ("red", "green", "blue", "brown", "white")
THINGS = ("harbour", "glacier", "violin", "tractor", "orchid", "comet", "bakery", "lantern")
SAME = {"hit@1": "hit_rate_at_1", "hit@5": "hit_rate_at_5", "hit@10": "hit_rate_at_10",
        "recall@10": "recall_at_10", "mrr@10": "mrr_at_10", "ndcg@10": "ndcg_at_10"}  # fmt: skip
"""Names of our metrics, and mteb's."""
Rows = list[dict[str, Any]]


class Data:
    """Documents, queries and judgements, for mteb and as files of our own format."""

    def __init__(self, documents: Rows, queries: Rows, relevant: dict[str, dict[str, int]]) -> None:
        self.documents, self.queries, self.relevant = documents, queries, relevant

    def task(self, category: str = "t2t", top_ranked: Any = None, prompt: Any = None) -> Any:
        modalities = ["text", "image"] if "i" in category else ["text"]
        split = {
            "queries": datasets.Dataset.from_list(self.queries),
            "corpus": datasets.Dataset.from_list(self.documents),
            "relevant_docs": {query: dict(graded) for query, graded in self.relevant.items()},
            "top_ranked": top_ranked,
        }
        if "i" in category:
            for side in ("queries", "corpus"):
                split[side] = split[side].cast_column("image", datasets.Image())

        class Made(AbsTaskRetrieval):
            metadata = TaskMetadata(
                name="MadeHere", description="Made here.",
                dataset={"path": "none", "revision": "1"},
                type="Any2AnyRetrieval" if "i" in category else "Retrieval", category=category,
                modalities=modalities, eval_splits=["test"], eval_langs=["eng-Latn"],
                main_score="ndcg_at_10", prompt=prompt,
            )  # fmt: skip

            def load_data(self, *_: Any, **__: Any) -> None:
                self.dataset, self.data_loaded = {"default": {"test": split}}, True

        return Made()

    def write(self, root: Path, instruction: str = "", target: str = "any") -> Own:
        def row(one: dict[str, Any], **more: Any) -> str:
            values = {"id": one["id"], "text": one.get("text"), **more}
            if one.get("image"):
                (root / f"{one['id']}.png").write_bytes(one["image"]["bytes"])
                values["image"] = f"{one['id']}.png"
            return json.dumps(values) + "\n"

        root.mkdir()
        (root / "pool.jsonl").write_text("".join(map(row, self.documents)))
        asked = [
            row(one, relevant=self.relevant[one["id"]], instruction=instruction, target=target)
            for one in self.queries
        ]
        (root / "queries.jsonl").write_text("".join(asked))
        return Own(root)


def texts() -> Data:
    """Things in colours; those of a query's colour and thing answer it, other colours less."""
    documents = [
        {"id": f"{colour}-{thing}", "text": f"we saw a {colour} {thing} on our way, {place}"}
        for place, colour in enumerate(COLOURS)
        for thing in THINGS
    ]
    queries = [
        {"id": f"q-{thing}-{colour}", "text": f"is there any {thing} that is {colour}?"}
        for colour in COLOURS[:3]
        for thing in THINGS
    ]
    relevant = {
        f"q-{thing}-{colour}": {f"{colour}-{thing}": 2, f"{COLOURS[-1]}-{thing}": 1, "lost": 1}
        for colour in COLOURS[:3]
        for thing in THINGS
    }
    return Data(documents, queries, relevant)


@pytest.fixture
def pairs(pictures) -> Data:
    """Pictures with captions, found by other pictures and words."""

    def picture(seed: int) -> dict[str, Any]:
        return {"bytes": pictures.png(seed), "path": None}

    documents = [
        {"id": f"d{n}", "text": f"a photograph of a {thing}", "image": picture(n)}
        for n, thing in enumerate(THINGS)
    ]
    queries = [
        {"id": f"q{n}", "text": f"the {thing} of the year", "image": picture(n + 50)}
        for n, thing in enumerate(THINGS)
    ]
    relevant = {f"q{n}": {f"d{n}": 1, f"d{(n + 3) % 8}": 1} for n in range(len(THINGS))}
    return Data(documents, queries, relevant)


def evaluate(model: Any, task: Any, folder: Path | None = None) -> dict[str, Any]:
    results = mteb.evaluate(
        model, [task], cache=None, co2_tracker=False, prediction_folder=folder,
        show_progress_bar=False,
    )  # fmt: skip
    return results.task_results[0].scores["test"][0]


def run_of(folder: Path) -> dict[str, dict[str, float]]:
    (path,) = folder.rglob("*.json")
    return json.loads(path.read_text())["default"]["test"]


async def check_same(mesh, data: Data, folder: Path, task: Any, search: Any, **options: Any):
    """Both ways rank alike, and give the same figures."""
    place = Place(folder / "out")
    own = data.write(folder / "own", task.metadata.prompt or "")
    async with AsyncClient(mesh.address) as client:
        ours = await Evaluation(client, own, place, Options(**options)).run()
        await client.delete_collection(ours.collection)
    theirs = evaluate(search, task, folder / "run")
    (result,) = ours.tasks
    assert {name: theirs[one] for name, one in SAME.items()} == pytest.approx(
        {name: result.figures[name].value for name in SAME},
        abs=1e-5,  # mteb rounds
    )
    answers = read_answers(folder / "out/answers/all.local.jsonl")
    run = run_of(folder / "run")
    ranked = {
        query: sorted(found, key=found.__getitem__, reverse=True) for query, found in run.items()
    }
    assert {q: ids[:10] for q, ids in ranked.items()} == {
        q: [hit.id for hit in answer.hits] for q, answer in answers.items()
    }
    return result, ranked


async def test_mteb_measures_what_we_measure(mesh, tmp_path) -> None:
    data = texts()
    search = MeshSearch(mesh.address)
    assert isinstance(search, SearchProtocol)
    result, ranked = await check_same(mesh, data, tmp_path, data.task(), search)
    assert 0.2 < result.figures["ndcg@10"].value < 0.99  # something is found, and not all
    assert {len(ids) for ids in ranked.values()} == {len(data.documents)}  # not ten: 1,000 are due


async def test_pictures_and_instructions_arrive(mesh, tmp_path, pairs) -> None:
    task = pairs.task("it2it", prompt="Find a picture with its caption.")
    result, _ = await check_same(mesh, pairs, tmp_path, task, MeshSearch(mesh.address))
    assert result.target_sources == {"instruction": len(pairs.queries)}
    assert result.share["image_text"] == 1


async def test_the_judge_and_the_target_are_those_asked_for(mesh, tmp_path) -> None:
    data, search = texts(), MeshSearch(mesh.address, target="wanted", rerank=7)
    options = {"target": Target.ANY, "rerank": 7}  # all are texts
    result, _ = await check_same(mesh, data, tmp_path, data.task(), search, **options)
    assert result.pairs == 7 * len(data.queries)


async def collections_of(mesh) -> list[str]:
    async with AsyncClient(mesh.address) as client:
        return [one.name for one in await client.list_collections() if "madehere" in one.name]


async def test_a_collection_is_deleted_after_the_search_unless_it_is_kept(mesh) -> None:
    data = texts()
    evaluate(MeshSearch(mesh.address), data.task())
    assert await collections_of(mesh) == []
    evaluate(MeshSearch(mesh.address, keep=True, exact=True), data.task())
    (kept,) = await collections_of(mesh)
    async with AsyncClient(mesh.address) as client:
        collection = await client.get_collection(kept)
        assert collection.candidates[Modality.TEXT] == len(data.documents)
        assert collection.settings.index_factory == "Flat"
        await client.delete_collection(kept)


async def test_a_corpus_that_breaks_off_leaves_no_collection(mesh) -> None:
    class Torn:
        """Rows that end in an error, as those of a damaged cache do."""

        features: dict[str, Any] = {}  # noqa: RUF012

        def __len__(self) -> int:
            return 200

        def __iter__(self):
            yield from ({"id": str(n), "text": f"a harbour {n}"} for n in range(150))
            raise OSError("torn")

    options = {"hf_split": "test", "hf_subset": "default", "encode_kwargs": {}}
    with pytest.raises(OSError, match="torn"):
        MeshSearch(mesh.address).index(Torn(), task_metadata=texts().task().metadata, **options)
    assert await collections_of(mesh) == []


async def test_reranking_tasks_are_searched_among_their_documents(mesh, tmp_path) -> None:
    data = texts()
    first = {one["id"]: [row["id"] for row in data.documents[n:][:7]]
             for n, one in enumerate(data.queries)}  # fmt: skip
    first[data.queries[0]["id"]] = []
    search = MeshSearch(mesh.address)
    evaluate(search, data.task(top_ranked=first), tmp_path)
    assert {q: set(found) for q, found in run_of(tmp_path).items()} == {
        q: set(ids) for q, ids in first.items()
    }
    assert search.rejections.counts == {"NOTHING_TO_RANK": 1}


async def test_what_the_mesh_does_not_take_is_counted(mesh, tmp_path, caplog) -> None:
    data = texts()
    odd = "two words\nand a line"
    data.documents += [
        {"id": "empty", "text": " "},
        {"id": odd, "text": "a purple walrus"},
        {"id": odd, "text": "a purple walrus"},
    ]
    data.queries += [{"id": "walrus", "text": "a purple walrus"}, {"id": "silent", "text": ""}]
    data.relevant |= {"walrus": {odd: 1}, "silent": {odd: 1}}
    search = MeshSearch(mesh.address)
    evaluate(search, data.task(), tmp_path)
    run = run_of(tmp_path)
    assert next(iter(run["walrus"])) == odd
    assert run["silent"] == {}
    assert search.rejections.counts == {"INVALID_FIELD": 2}
    assert {one.where for one in search.rejections.examples} == {"empty", "silent"}
    assert "does not take" in caplog.text


async def test_results_are_filed_by_models_and_options(mesh, collection, client) -> None:
    """mteb does not measure again what it has a result for."""
    plain, judged = MeshSearch(mesh.address), MeshSearch(mesh.address, rerank=5, merge="rrf")
    first, second = plain.mteb_model_meta, judged.mteb_model_meta
    fingerprint = client.get_collection(collection).model_fingerprint
    assert first.revision == second.revision == fingerprint.replace(":", "-")
    assert first.experiment_kwargs == {"target": "any"}
    judge = second.experiment_kwargs.pop("judge")
    assert judge
    assert second.experiment_kwargs == {"target": "any", "rerank": 5, "merge": "rrf"}
    assert not [one.name for one in client.list_collections() if "probe" in one.name]


def test_a_search_needs_a_corpus(mesh) -> None:
    with pytest.raises(FailedPrecondition, match="index"):
        MeshSearch(mesh.address).search(
            None, task_metadata=None, hf_split="", hf_subset="", top_k=1, encode_kwargs={}
        )


def test_the_encoder_alone_ranks_as_the_mesh_does(mesh, tmp_path) -> None:
    data = texts()
    encoder = MeshEncoder(mesh.address_of("encoder"))
    assert isinstance(encoder, EncoderProtocol)
    assert encoder.mteb_model_meta.name == "mmesh/lite"
    theirs = evaluate(encoder, data.task(), tmp_path / "encoder")
    ours = evaluate(MeshSearch(mesh.address, exact=True), data.task(), tmp_path / "mesh")
    assert {one: theirs[one] for one in SAME.values()} == pytest.approx(
        {one: ours[one] for one in SAME.values()}
    )


def test_the_encoder_encodes_pictures_and_leaves_zeros_for_what_it_cannot(mesh, pairs) -> None:
    encoder = MeshEncoder(mesh.address_of("encoder"))
    assert evaluate(encoder, pairs.task("it2it"))["hit_rate_at_1"] > 0
    task = texts().task()
    loader = type("Loader", (list,), {"dataset": [0, 1]})([{"text": ["a walrus", " "]}])
    options = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default"}
    vectors = encoder.encode(loader, **options, show_progress_bar=False)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0], atol=1e-5)
    assert encoder.rejections.total == 1
    assert encoder.similarity_pairwise(vectors[:1], vectors[:1]).tolist() == pytest.approx([1])
    with pytest.raises(ValueError, match="int8"):
        encoder.encode(loader, **options, precision="int8")


def test_labels_of_pictures_are_encoded_as_texts_alone(mesh, pairs) -> None:
    encoder = MeshEncoder(mesh.address_of("encoder"))
    metadata = pairs.task("it2it").metadata
    assert set(metadata.modalities) == {"text", "image"}
    loader = type("Loader", (list,), {"dataset": [0]})([{"text": ["a photo of a cat"]}])
    options = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default"}
    vectors = encoder.encode(loader, **options, show_progress_bar=False)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1])


class Alike(AbsTaskSTS):
    """A task that does not search: are the cosines of pairs in the order that people see?"""

    metadata = TaskMetadata(
        name="AlikeMadeHere", description="Made here.", dataset={"path": "none", "revision": "1"},
        type="STS", category="t2t", modalities=["text"], eval_splits=["test"],
        eval_langs=["eng-Latn"], main_score="cosine_spearman",
    )  # fmt: skip
    min_score, max_score = 0, 5

    def load_data(self, *_: Any, **__: Any) -> None:
        first = [f"we saw a red {thing}" for thing in THINGS]
        second = [*first[:3], *(f"a blue {thing}, not far" for thing in THINGS[3:6]), "no", "yes"]
        pairs = {"sentence1": first, "sentence2": second, "score": [5, 5, 5, 3, 3, 3, 0, 0]}
        self.dataset = {"test": datasets.Dataset.from_dict(pairs)}
        self.data_loaded = True


def test_the_encoder_takes_tasks_that_do_not_search(mesh) -> None:
    figures = evaluate(MeshEncoder(mesh.address_of("encoder")), Alike())
    assert figures["cosine_spearman"] > 0.9


def test_scores_keep_the_order_where_trec_eval_would_see_equal_ones() -> None:
    found = {"a": 0.5 + 1e-9, "b": 0.5, "c": 0.5, "e": 0.6, "d": -1.0}
    hits = [Found(name, score, Modality.TEXT) for name, score in found.items()]
    scores = _scores(hits, {"e": "their e"})
    assert list(scores) == ["a", "b", "c", "their e", "d"]
    as_read = np.array(list(scores.values()), np.float32)
    assert (np.diff(as_read) < 0).all()
    np.testing.assert_allclose(as_read, [0.5, 0.5, 0.5, 0.5, -1], rtol=1e-6)


def test_rows_are_read_as_mteb_reads_them(pairs) -> None:
    assert rows.document_text({"title": "A", "text": "b "}) == "A b"
    assert rows.document_text({"title": None, "text": "b"}) == "b"
    assert rows.query_text({"text": "q", "instruction": "briefly"}) == "q briefly"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert rows.query_text({"text": turns}) == "user: hi; assistant: ho"
    assert rows.query_text({"text": ["hi", "ho"], "instruction": "go on"}) == "go on hi; ho"
    metadata = pairs.task("t2i", prompt={"query": "Find it."}).metadata
    assert rows.instruction_of(metadata, PromptType.query) == "Find it."
    assert rows.instruction_of(metadata, PromptType.document) == ""
    assert rows.wanted_of(metadata) is Modality.IMAGE


def test_pictures_go_as_the_files_that_they_are(pictures) -> None:
    jpeg, bmp = pictures.jpeg(3), io.BytesIO()
    Pillow.fromarray(pictures.pixels(3)).save(bmp, "BMP")
    (image,) = rows.content_of("", {"bytes": jpeg, "path": None}).images
    assert image.data == jpeg
    (image,) = rows.content_of("", {"bytes": bmp.getvalue(), "path": None}).images
    assert image.data.startswith(b"\x89PNG")
    with pytest.raises(OSError, match="cannot identify"):
        rows.content_of("", {"bytes": b"none", "path": None})
