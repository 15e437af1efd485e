import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesh.content import Modality
from mmesh.search import MergePolicy
from services.gateway.interfaces import Judge, Scored
from services.gateway.search.calibration import Calibration, Scale, fit
from services.gateway.search.merge import merge
from services.gateway.search.ranking import Ranked, join_shards
from services.gateway.search.rerank import places_to_judge, reorder

TEXT, IMAGE = Modality.TEXT, Modality.IMAGE


def hits(modality, *scores):
    return [Scored(f"{modality.value}{n}", modality, s, {}) for n, s in enumerate(scores)]


LISTS = {TEXT: hits(TEXT, 0.7, 0.6, 0.5), IMAGE: hits(IMAGE, 0.4, 0.2)}
# By these scales the first image is an excellent hit and the first text a poor one.
CALIBRATION = Calibration({TEXT: Scale(0.9, 0.1), IMAGE: Scale(0.2, 0.1)}, 1, "v")


def order(policy, calibration=CALIBRATION, limit=10):
    return [entry.hit.id for entry in merge(LISTS, policy, calibration, limit)]


def test_raw_scores_bury_the_pictures():
    assert order(MergePolicy.SCORE) == ["text0", "text1", "text2", "image0", "image1"]


def test_calibrated_scores_compare_modalities_by_what_is_usual_for_each():
    assert order(MergePolicy.CALIBRATED) == ["image0", "image1", "text0", "text1", "text2"]


def test_a_small_advantage_does_not_give_one_list_all_places():
    lists = {TEXT: hits(TEXT, 0.91, 0.91, 0.91), IMAGE: hits(IMAGE, 0.2, 0.2)}
    merged = merge(lists, MergePolicy.CALIBRATED, CALIBRATION, 3)
    assert [entry.hit.modality for entry in merged] == [TEXT, IMAGE, TEXT]


def test_interleaved_lists_take_turns_led_by_the_best_first_hit():
    assert order(MergePolicy.INTERLEAVE) == ["image0", "text0", "image1", "text1", "text2"]
    assert order(MergePolicy.INTERLEAVE, calibration=None)[0] == "text0"


def test_reciprocal_ranks_fuse_and_equal_ranks_go_by_turn():
    assert order(MergePolicy.RRF) == ["image0", "text0", "image1", "text1", "text2"]


def test_one_list_keeps_its_scores_whatever_the_policy():
    for policy in MergePolicy:
        merged = merge({TEXT: LISTS[TEXT], IMAGE: []}, policy, CALIBRATION, 2)
        assert [entry.score for entry in merged] == [0.7, 0.6]


scores = st.lists(st.floats(-1, 1), max_size=8).map(lambda s: sorted(s, reverse=True))


@given(scores, scores, st.sampled_from(list(MergePolicy)), st.integers(1, 12))
def test_a_merged_list_is_complete_and_falls(texts, images, policy, limit):
    lists = {TEXT: hits(TEXT, *texts), IMAGE: hits(IMAGE, *images)}
    merged = merge(lists, policy, CALIBRATION, limit)
    assert len(merged) == min(limit, len(texts) + len(images))
    assert len({entry.hit.id for entry in merged}) == len(merged)
    values = [entry.score for entry in merged]
    assert values == sorted(values, reverse=True)


def test_shards_join_by_score_then_id():
    left = [Scored("b", TEXT, 0.5, {}), Scored("d", TEXT, 0.1, {})]
    right = [Scored("a", TEXT, 0.5, {}), Scored("c", TEXT, 0.3, {})]
    assert [hit.id for hit in join_shards([left, right], 3)] == ["a", "b", "c"]


def test_a_calibration_measures_the_tail_and_its_version_changes_with_it():
    tails = {TEXT: np.array([0.5, 0.7]), IMAGE: np.array([])}
    one, two = fit(tails, 10, "m"), fit({TEXT: np.array([0.5, 0.8])}, 10, "m")
    assert one.scales[TEXT] == Scale(pytest.approx(0.6), pytest.approx(0.1))
    assert IMAGE not in one.scales
    assert one.version != two.version
    assert fit({TEXT: np.array([])}, 10, "m") is None
    assert not one.is_outgrown(100)
    assert one.is_outgrown(120)


def ranked(*modalities):
    return [
        Ranked(Scored(f"h{n}", modality, 1 - n / 10, {}), 1 / (n + 1))
        for n, modality in enumerate(modalities)
    ]


FULL = {TEXT: 1.0, IMAGE: 1.0}


def test_a_trusted_judge_orders_by_its_scores():
    result = reorder(ranked(TEXT, TEXT, TEXT), {0: 0.1, 1: 0.3, 2: 0.2}, FULL, Judge({}, False))
    assert [entry.hit.id for entry in result] == ["h1", "h2", "h0"]
    assert [entry.rerank_score for entry in result] == [0.3, 0.2, 0.1]
    assert [entry.score for entry in result] == [1, 1 / 2, 1 / 3]


def test_a_judge_that_cannot_compare_modalities_moves_hits_within_theirs():
    entries = ranked(TEXT, IMAGE, TEXT, IMAGE)
    result = reorder(entries, {0: 0.1, 1: 0.2, 2: 0.9, 3: 0.8}, FULL, Judge({}, False))
    assert [entry.hit.id for entry in result] == ["h2", "h3", "h0", "h1"]


def test_a_judge_that_compares_modalities_moves_hits_anywhere():
    entries = ranked(TEXT, IMAGE, TEXT)
    result = reorder(entries, {0: 0.1, 1: 0.9, 2: 0.5}, FULL, Judge({}, True))
    assert [entry.hit.id for entry in result] == ["h1", "h2", "h0"]


def test_a_judge_without_trust_changes_nothing():
    entries = ranked(TEXT, TEXT, TEXT)
    result = reorder(entries, {0: 0.1, 1: 0.5, 2: 0.9}, {TEXT: 0.0}, Judge({}, False))
    assert [entry.hit.id for entry in result] == ["h0", "h1", "h2"]


def test_hits_that_were_not_judged_keep_their_places():
    result = reorder(ranked(TEXT, TEXT, TEXT), {0: 0.1, 2: 0.9}, FULL, Judge({}, False))
    assert [entry.hit.id for entry in result] == ["h2", "h1", "h0"]
    assert result[1].rerank_score is None


def test_equal_verdicts_leave_the_first_stage_order():
    result = reorder(ranked(TEXT, TEXT), {0: 0.5, 1: 0.5}, FULL, Judge({}, False))
    assert [entry.hit.id for entry in result] == ["h0", "h1"]


def test_only_hits_the_judge_has_a_say_on_are_judged():
    assert places_to_judge(ranked(TEXT, IMAGE, TEXT), 2, {TEXT: 1.0, IMAGE: 0.0}) == [0]
