"""`mmesh plan`: tables, JSON, and what is wrong with a wish."""

import json

import pytest


@pytest.fixture
def run_plan(command_here, tmp_path):
    return lambda *options: command_here("plan", *options, env={}, folder=tmp_path)


def test_a_plan_is_told_with_its_sources(run_plan):
    code, output, errors = run_plan(
        "--rows", "100M", "--modalities", "text=0.7,image=0.3", "--qps", "500", "--rerank", "20",
        "--gpu", "h100",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    for said in ("reranker", "GPUs", "log (PostgreSQL)", "extrapolated: H100", "index_growth at"):
        assert said in output


def test_json_has_all_that_the_tables_have(run_plan):
    code, output, _ = run_plan("--rows", "2.5M", "--dim", "384", "--json")
    found = json.loads(output)
    assert code == 0
    assert found["wish"]["rows"] == 2_500_000
    assert found["index"]["shards"] == 1
    assert {one["name"] for one in found["pods"]} == {"gateway", "index", "encoder"}
    assert found["coefficients"][0]["sources"][0]["benchmark"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rows", "many"], "no count such as"),
        (["--rows", "1M", "--modalities", "text"], "not of the form"),
        (["--rows", "1M", "--modalities", "text=0.4"], "add up to 1"),
        (["--rows", "9" * 400], "more than anybody counts"),
        (["--rows", "1M", "--pod-memory", "nan"], "--pod-memory is nan"),
        (["--rows", "100B"], "--pod-memory"),
        (["--rows", "1M", "--gpu", "abacus"], "abacus"),
    ],
)
def test_a_wish_that_cannot_be_is_wrong_usage(run_plan, options, says):
    code, _, errors = run_plan(*options)
    assert code == 2
    assert says in errors


def test_an_overlay_needs_the_folder_that_it_builds_on(run_plan, tmp_path):
    code, _, errors = run_plan("--rows", "1M", "--kustomize", tmp_path / "mine")
    assert code == 1
    assert "no folder k8s of mmesh" in errors
    assert not (tmp_path / "mine").exists()
