"""Plans follow from measured coefficients, and what they copy from the index is what it does."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from mmesh.capacity import Gpu, ImpossibleWish, VectorKind, Wish, index_plan, plan
from mmesh.capacity.coefficients import FILE, Coefficients
from mmesh.capacity.planning import SNAPSHOTS_KEPT
from mmesh.content import Modality
from services.index.build import tuning, worker
from services.index.config import IndexSettings
from services.index.slots import SLOTS
from services.index.view import memory
from tools import coefficients

RESULTS = Path(__file__).parents[3] / "benchmarks/results"
MIXED = {"text": 0.7, "image": 0.3}
LARGE = Wish(100_000_000, 1024, MIXED, 500, 20, 2, Gpu.H100)
GROWTH = json.loads((RESULTS / "index_growth.json").read_text())["tables"][0]
GROWN = [dict(zip(GROWTH["header"], row, strict=True)) for row in GROWTH["rows"]]


@pytest.fixture(scope="module")
def measured() -> Coefficients:
    return Coefficients.load()


def pods_of(found, name):
    return next(one for one in found.pods if one.name == name)


def test_what_is_copied_from_the_index_is_what_the_index_does():
    assert index_plan.SLOTS == SLOTS
    assert index_plan.MEMORY_SHARE == memory.SHARE
    assert index_plan.FLAT_ROWS == tuning.FLAT_ROWS
    trained = (worker.MIN_TRAINING_ROWS, worker.TRAINING_ROWS_PER_LIST)
    assert trained == (index_plan.LEAST_TRAINING_ROWS, index_plan.TRAINING_ROWS_A_LIST)
    for rows in (30_000, 1_000_000, 12_500_000):
        lists = tuning.automatic_factory(rows, LARGE.dim).partition(",")[0]
        assert lists == f"IVF{index_plan._lists(rows)}"
    wish = Wish(1, 64)
    assert memory.load_bytes(1000, wish.dim) == 1000 * (4 * wish.dim + index_plan.LOAD_ROW_BYTES)
    assert IndexSettings.model_fields["snapshots_kept"].default == SNAPSHOTS_KEPT
    assert set(LARGE.modalities) <= {one.value for one in Modality}


@pytest.mark.parametrize("kind", list(VectorKind))
def test_the_structure_that_a_plan_names_is_offered(kind):
    factory = plan(replace(LARGE, vectors=kind, qps=1)).index.index_factory
    tuning.check_factory(factory, LARGE.dim)


@pytest.mark.parametrize("row", GROWN, ids=lambda row: str(row["rows"]))
def test_a_plan_agrees_with_what_it_was_made_of(row, measured):
    wish = Wish(row["rows"], 384, qps=1)
    if row["rows"] >= index_plan.FLAT_ROWS:
        planned = index_plan.row_bytes(wish, measured)
        assert planned == pytest.approx(row["bytes / row"], rel=0.02)
    overhead = measured["index-call-ms"]
    searched = index_plan.search_ms(wish, row["rows"], measured) - overhead
    assert overhead + searched < row["median ms"] < 2.5 * (overhead + searched)


def test_a_process_is_given_what_it_asks_for_before_it_loads(measured):
    for rows, dim in ((1_000_000, 384), (10_000_000, 1024), (100_000, 64)):
        given = index_plan.process_bytes(Wish(rows, dim), rows, measured)
        asked = memory.load_bytes(rows, dim) + measured["index-process-bytes"]
        assert asked <= memory.SHARE * given + 1


def test_the_largest_shard_has_the_slots_that_are_left_over():
    assert index_plan.rows_of_shard(256_000, 3) == 86_000
    assert index_plan.rows_of_shard(256_000, 4) == 64_000


def test_more_of_anything_takes_no_less():
    base = plan(LARGE)
    for more in (
        replace(LARGE, rows=2 * LARGE.rows),
        replace(LARGE, dim=2048),
        replace(LARGE, qps=1000),
        replace(LARGE, reranked=40),
        replace(LARGE, replicas=3),
        replace(LARGE, modalities={"image": 1.0}),
    ):
        found = plan(more)
        assert found.cores >= base.cores
        assert found.memory_bytes >= base.memory_bytes
        assert found.gpus >= base.gpus
        assert (found.cores, found.memory_bytes, found.gpus) != (
            base.cores,
            base.memory_bytes,
            base.gpus,
        )


def test_pods_keep_to_the_size_that_is_allowed():
    for gib in (8, 32, 128):
        index = pods_of(plan(replace(LARGE, pod_memory_gib=gib)), "index")
        assert index.memory_bytes <= gib << 30
        assert index.cores <= LARGE.pod_cores


def test_more_queries_than_the_cores_of_the_replicas_answer_make_more_replicas():
    found = plan(replace(LARGE, qps=2000))
    assert found.index.replicas > LARGE.replicas
    assert any("replicas, not 2" in note for note in found.notes)


def test_nothing_hangs_on_one_pod_unless_that_is_wished():
    assert all(one.count >= 2 for one in plan(Wish(1000, 384)).pods)
    assert all(one.count == 1 for one in plan(Wish(1000, 384, replicas=1)).pods)


def test_a_plan_says_what_it_extrapolates():
    found = plan(LARGE)
    notes, index = " ".join(found.notes), found.index
    for said in (f"{index.rows:,} rows", "dim 1024", f"{index.shards} shards", "H100", "no judge"):
        assert said in notes
    small = " ".join(plan(Wish(500_000, 384)).notes)
    assert "up to 1,000,000" not in small
    assert "dim" not in small.replace("--dim", "")


def test_coefficients_are_what_the_stored_results_say():
    shipped = resources.files("mmesh.capacity") / FILE
    assert shipped.read_text("utf-8") == coefficients.page()
    by_hand = GROWN[-1]["bytes / row"] - 2.25 * 384
    assert Coefficients.load()["index-row-bytes"] == pytest.approx(by_hand, rel=0.001)


def test_every_coefficient_that_a_plan_uses_names_benchmark_commit_and_machine():
    for wish in (LARGE, Wish(1_000_000, 384, MIXED, 50, 20)):
        for one in plan(wish).coefficients:
            assert one.sources
            for source in one.sources:
                assert (RESULTS / f"{source.benchmark}.json").is_file()
                assert source.commit
                assert source.machine


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"rows": 10**11}, "possible are --pod-memory "),
        ({"rows": 0}, "--rows is 0"),
        ({"dim": 0}, "--dim is 0"),
        ({"qps": 10**6}, "possible are a greater --pod-cores"),
        ({"modalities": {"video": 1.0}}, "'video' is none of text, image, image-text"),
        ({"modalities": {"text": 0.5}}, "text=0.5 to 0.5"),
        ({"reranked": 2000}, "--rerank is 2,000"),
        ({"modalities": {"text": float("nan")}}, "add up to 1"),
        ({"pod_memory_gib": float("inf")}, "--pod-memory is inf"),
        ({"picture_kb": float("nan")}, "--picture-kb is nan"),
        ({"replicas": 17}, "--replicas is 17"),
    ],
)
def test_an_impossible_wish_is_refused_with_what_would_be_possible(wish, says):
    with pytest.raises(ImpossibleWish) as refused:
        plan(replace(LARGE, **wish))
    assert says in str(refused.value)


def test_what_is_proposed_instead_is_possible():
    huge = replace(LARGE, rows=10**11, qps=0)
    with pytest.raises(ImpossibleWish) as refused:
        plan(huge)
    proposed = int(re.search(r"--pod-memory (\d+)", str(refused.value))[1])
    assert plan(replace(huge, pod_memory_gib=proposed)).index.shards == SLOTS
