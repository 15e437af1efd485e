"""A judge on the real vLLM engine in a whole mesh: what it says, what it costs, and if it hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmesh import Client, Rerank
from mmesh.candidates import Candidate
from mmesh.content import Content
from mmesh.models.parity import load_reference
from mmesh.search import RerankOutcome

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

QUERY = "a lighthouse above the sea"


@pytest.fixture(scope="module")
def judged_client(vllm_mesh) -> Iterator[Client]:
    with Client(vllm_mesh.address) as client:
        yield client


@pytest.fixture(scope="module")
def filled(judged_client, new_collection, pictures) -> Iterator[str]:
    with new_collection(judged_client) as name:
        candidates = [Candidate(f"text-{n}", Content.of(f"red square {n}")) for n in range(6)]
        candidates += [Candidate(f"image-{n}", Content.of(pictures.png(n))) for n in range(4)]
        candidates.append(Candidate("both", Content.of(pictures.png(9), "a green square")))
        token = judged_client.upsert_candidates(name, candidates).token
        judged_client.search(name, QUERY, token=token)
        yield name


def reasons(found) -> list[str]:
    return [degradation.reason for degradation in found.degradations]


def is_whole(client: Client, collection: str) -> bool:
    found = client.search(collection, QUERY)
    return not found.degradations and found.receipt.rerank_outcome is RerankOutcome.FULL


def engine_processes(pid: int) -> list[int]:
    """Return the processes of vLLM that a reranker started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def test_hits_of_all_modalities_are_judged(judged_client, filled, pictures):
    found = judged_client.search(filled, [pictures.png(2), "but blue"], limit=11)
    assert len(found.hits) == 11
    assert all(0 < (hit.rerank_score or 0) < 1 for hit in found.hits)
    assert found.receipt.reranker_template.startswith("mbeir@1:")
    assert found.receipt.rerank_outcome is RerankOutcome.FULL
    again = judged_client.search(filled, [pictures.png(2), "but blue"], limit=11)
    assert [hit.rerank_score for hit in again.hits] == [hit.rerank_score for hit in found.hits]


def test_pictures_are_judged_as_far_as_the_budget_of_image_tokens_goes(judged_client, filled):
    found = judged_client.search(
        filled, "something that is not remembered", limit=11, rerank=Rerank(11, max_image_tokens=9)
    )
    assert reasons(found) == ["RERANK_PARTIAL"]
    unjudged = [hit.id for hit in found.hits if hit.rerank_score is None]
    assert unjudged
    assert not [name for name in unjudged if name.startswith("text")]


def test_an_engine_that_hangs_costs_its_say_but_not_the_answer(
    vllm_mesh, judged_client, filled, eventually
):
    engine = engine_processes(vllm_mesh.pid("reranker"))
    for pid in engine:
        os.kill(pid, signal.SIGSTOP)
    try:
        hung = judged_client.search(filled, "a new query", rerank=Rerank(10, max_seconds=0.5))
    finally:
        for pid in engine:
            os.kill(pid, signal.SIGCONT)
    assert reasons(hung)[0] in ("RERANK_PARTIAL", "RERANK_UNAVAILABLE")
    assert len(hung.hits) == 10
    eventually(lambda: is_whole(judged_client, filled), "the engine judges again", 60)


def test_the_engine_agrees_with_transformers(vllm_mesh, tmp_path):
    folder = vllm_mesh.settings.reranker.removeprefix("vllm:")
    command = ["rerank", "check", "--data", vllm_mesh.settings.data, "--reference", folder]
    command += ["--save", tmp_path / "canary.npz", "--json"]
    program = [sys.executable, "-c", "from mmesh.cli import main; main()", *map(str, command)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["probes"]) == 10
    assert found["max_abs_diff"] < 1e-4
    assert len(load_reference(tmp_path / "canary.npz").answers) == 10
