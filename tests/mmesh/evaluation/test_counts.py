"""What a report counts: candidates as they are stored, and what the queries are after."""

from __future__ import annotations

import json

import pytest

from mmesh.aio import AsyncClient
from mmesh.candidates import Candidate
from mmesh.content import Content, Modality
from mmesh.evaluation.datasets.own import Own
from mmesh.evaluation.options import Options
from mmesh.evaluation.report.facts import facts_of
from mmesh.evaluation.run import Evaluation, Place
from mmesh.evaluation.survey import survey

POOL = [
    {"id": "dog", "text": "a dog runs"},
    {"id": "dog", "text": "the same id again"},
    {"id": "cat", "image": "cat.png"},
    {"id": "lost", "image": "lost.png"},
    {"id": "nul", "text": "nul \0"},
]
QUERIES = [
    {"id": "q1", "text": "dog", "relevant": ["dog"], "task": "texts"},
    {"id": "q2", "text": "cat", "relevant": ["cat"], "task": "both", "target": "image"},
    {"id": "q3", "text": "dog", "relevant": ["dog"], "task": "both"},
    {"id": "q4", "text": "cat", "relevant": ["cat"], "task": "pictures", "target": "image"},
]
STORED = {Modality.TEXT: 1, Modality.IMAGE: 1}


@pytest.fixture
def own(tmp_path, pictures) -> Own:
    for name, rows in (("pool", POOL), ("queries", QUERIES)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "cat.png").write_bytes(pictures.png())
    return Own(tmp_path)


def test_modalities_of_a_survey_add_up(own) -> None:
    found = survey(own)
    assert found.total == 4
    assert found.candidates == {Modality.TEXT: 2, Modality.IMAGE: 2}


@pytest.mark.parametrize("others", [0, 20])
async def test_a_report_counts_what_is_stored_and_says_what_is_wanted(
    mesh, own, collection, tmp_path, monkeypatch, others
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    async with AsyncClient(mesh.address) as client:
        beside = [Candidate(f"other-{n}", Content.of(f"other {n}")) for n in range(others)]
        await client.ingest(collection, beside)
        place = Place(tmp_path / "out", collection=collection)
        for _ in range(2):  # the second goes on from a pool that is in
            results = await Evaluation(client, own, place, Options()).run()
            assert {m: n for m, n in results.candidates.items() if n} == {
                m.value: n for m, n in STORED.items()
            }
    assert facts_of(results)[0].startswith("Pool: 2 candidates (1 text, 1 image), in ")
    wanted = {task.task: task.wanted for task in results.tasks}
    assert wanted == {"texts": "", "both": "any, image", "pictures": "image"}
