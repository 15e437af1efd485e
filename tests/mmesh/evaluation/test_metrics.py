"""Metrics against trec_eval's own code, and against sums done by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmesh.content import Modality
from mmesh.evaluation.metrics import (
    DuplicateHits,
    Ranking,
    UnknownMetric,
    depth,
    metric,
    share_by_modality,
    subset_recall_at,
)

IDS = [f"c{number}" for number in range(30)]
RANKED = st.lists(st.sampled_from(IDS), unique=True, max_size=20)
GRADES = st.dictionaries(st.sampled_from(IDS), st.integers(0, 3), min_size=1, max_size=12).filter(
    lambda grades: any(grades.values())
)


def value(name: str, found: list[str], grades: dict[str, int]) -> float:
    return metric(name)(Ranking(found, grades))


@settings(deadline=None, max_examples=60)
@given(RANKED, GRADES, st.sampled_from([1, 3, 5, 10]))
def test_metrics_equal_trec_eval(found: list[str], grades: dict[str, int], k: int) -> None:
    trec = pytest.importorskip("pytrec_eval", reason="trec_eval is absent: run `make setup`")
    names = {
        "hit": "success",
        "recall": "recall",
        "ndcg": "ndcg_cut",
        "mrr": "recip_rank",
    }
    cuts = {f"{theirs}.{k}" for theirs in names.values() if theirs != "recip_rank"}
    scores = {one: float(-rank) for rank, one in enumerate(found[:k])}
    judge = trec.RelevanceEvaluator({"q": grades}, {*cuts, "recip_rank"})
    theirs = judge.evaluate({"q": scores})["q"] if scores else {}
    for ours, their_name in names.items():
        key = their_name if ours == "mrr" else f"{their_name}_{k}"
        assert value(f"{ours}@{k}", found, grades) == pytest.approx(theirs.get(key, 0.0), abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(RANKED, GRADES, st.sampled_from([1, 5, 10]))
def test_metrics_equal_ir_measures(found: list[str], grades: dict[str, int], k: int) -> None:
    """And mAP@k is trec_eval's, but for the denominator."""
    ir = pytest.importorskip("ir_measures", reason="ir-measures is absent: run `make setup`")
    qrels = [ir.Qrel("q", one, grade) for one, grade in grades.items()]
    run = [ir.ScoredDoc("q", one, float(-rank)) for rank, one in enumerate(found)]
    measures = {"hit": ir.Success @ k, "recall": ir.R @ k, "ndcg": ir.nDCG @ k, "map": ir.AP @ k}
    theirs = ir.calc_aggregate(list(measures.values()), qrels, run) if run else {}
    relevant = sum(grade > 0 for grade in grades.values())
    for ours, measure in measures.items():
        factor = relevant / min(relevant, k) if ours == "map" else 1
        expected = theirs.get(measure, 0.0) * factor
        assert value(f"{ours}@{k}", found, grades) == pytest.approx(expected, abs=1e-9)


def test_metrics_by_hand() -> None:
    found, grades = ["x", "a", "y", "b", "z"], {"a": 1, "b": 2, "c": 1, "y": 0}
    assert value("hit@1", found, grades) == 0
    assert value("hit@2", found, grades) == 1
    assert value("recall@5", found, grades) == pytest.approx(2 / 3)
    assert value("mrr@5", found, grades) == 1 / 2
    assert value("mrr@1", found, grades) == 0
    assert value("map@5", found, grades) == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert value("map@2", found, grades) == pytest.approx((1 / 2) / 2)  # min(|GT|, k) = 2
    ideal = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    gain = 1 / math.log2(3) + 2 / math.log2(5)
    assert value("ndcg@5", found, grades) == pytest.approx(gain / ideal)
    assert value("target_hit@3", found, grades) == 0  # a is found, but b is the target
    assert value("target_hit@4", found, grades) == 1


def test_average_precision_is_that_of_circo() -> None:
    """The formula of CIRCO's `src/evaluation.py`, written out with arrays."""
    import numpy as np

    truths, predictions = [3, 9, 4, 7], [9, 1, 4, 2, 3, 8, 7, 5, 6, 0]
    labels = np.isin(predictions, truths)
    precisions = np.cumsum(labels) * labels / np.arange(1, len(labels) + 1)
    found, grades = [str(p) for p in predictions], {str(t): 1 for t in truths}
    for k in (2, 3, 5, 10):
        expected = precisions[:k].sum() / min(len(truths), k)
        assert value(f"map@{k}", found, grades) == pytest.approx(expected)


def test_nothing_found_and_nothing_relevant_give_zero() -> None:
    for name in ("hit@5", "recall@5", "mrr@5", "ndcg@5", "map@5", "target_hit@5"):
        assert value(name, [], {"a": 1}) == 0
        assert value(name, ["a"], {"a": 0}) == 0


def test_a_candidate_found_twice_is_an_error() -> None:
    with pytest.raises(DuplicateHits, match="'a'"):
        Ranking(["a", "b", "a"], {"a": 1})


def test_subset_recall_looks_only_at_the_group() -> None:
    ranking = Ranking(["far", "near", "target"], {"target": 1})
    assert subset_recall_at(ranking, {"near", "target"}, 1) == 0
    assert subset_recall_at(ranking, {"near", "target"}, 2) == 1
    assert subset_recall_at(ranking, {"target"}, 1) == 1


def test_mismatch_is_about_the_first_hit() -> None:
    text, image = Modality.TEXT, Modality.IMAGE

    def rate(modalities: list[Modality], wanted: Modality | None) -> float:
        found = [str(number) for number in range(len(modalities))]
        return metric("mismatch")(Ranking(found, {}, modalities, wanted))

    assert rate([image, text], image) == 0
    assert rate([text, image], image) == 1
    assert rate([], image) == 1
    assert rate([text], None) == 0


def test_shares_add_up() -> None:
    text, image = Modality.TEXT, Modality.IMAGE
    rankings = [
        Ranking(["a", "b", "c"], {}, [text, image, image]),
        Ranking(["d"], {}, [text]),
    ]
    assert share_by_modality(rankings, 2) == {
        text: 2 / 3,
        image: 1 / 3,
        Modality.IMAGE_TEXT: 0,
    }
    assert sum(share_by_modality([], 2).values()) == 0


@pytest.mark.parametrize("name", ["hit", "hit@0", "hit@x", "precision@5", ""])
def test_unknown_metrics_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownMetric, match="ndcg@k"):
        metric(name)


def test_depth_is_what_a_metric_looks_at() -> None:
    assert (depth("hit@50"), depth("mismatch")) == (50, 1)
