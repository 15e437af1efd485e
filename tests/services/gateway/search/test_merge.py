import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mmesh.content import Modality
from mmesh.search import MergePolicy
from services.gateway.interfaces import Judge, ReferenceRows, Scored
from services.gateway.search.calibration import LEAST_THINGS, Calibration, fit
from services.gateway.search.merge import merge
from services.gateway.search.ranking import Ranked, join_shards
from services.gateway.search.rerank import places_to_judge, reorder

TEXT, IMAGE = Modality.TEXT, Modality.IMAGE


def hits(modality, *scores):
    return [Scored(f"{modality.value}{n}", modality, s, {}) for n, s in enumerate(scores)]


LISTS = {TEXT: hits(TEXT, 0.7, 0.6, 0.5), IMAGE: hits(IMAGE, 0.4, 0.2)}
# By these scales the first image is an excellent hit and the first text a poor one.
CALIBRATION = Calibration({TEXT: 0.9, IMAGE: 0.2}, 0.1, "v")


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


PAIR = Modality.IMAGE_TEXT
STEEP = Calibration({PAIR: 0.3, IMAGE: 0.9}, 0.1, "v")


@pytest.mark.parametrize(
    ("policy", "query", "similarity", "leads"),
    [
        (MergePolicy.CALIBRATED, IMAGE, 1.0, True),
        (MergePolicy.CALIBRATED, IMAGE, 0.99995, True),  # as half precision keeps it
        (MergePolicy.CALIBRATED, IMAGE, 0.999, False),
        (MergePolicy.CALIBRATED, TEXT, 1.0, False),
        (MergePolicy.CALIBRATED, None, 1.0, False),
        (MergePolicy.RRF, IMAGE, 1.0, False),
    ],
)
def test_the_very_picture_of_the_query_leads_the_calibrated_list(policy, query, similarity, leads):
    lists = {PAIR: hits(PAIR, 0.8, 0.7), IMAGE: hits(IMAGE, similarity, similarity, 0.9)}
    merged = merge(lists, policy, STEEP, 3, query)
    first = [entry.hit.modality for entry in merged[:2]]
    assert (first == [IMAGE, IMAGE]) is leads
    assert len(merged) == 3
    values = [entry.score for entry in merged]
    assert values == sorted(values, reverse=True)


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


def test_without_a_calibration_lists_are_merged_by_raw_scores():
    for calibration in (None, Calibration({TEXT: 0.9}, 0.1, "v")):
        merged = merge(LISTS, MergePolicy.CALIBRATED, calibration, 10)
        assert [entry.hit.id for entry in merged] == order(MergePolicy.SCORE)
        assert [entry.score for entry in merged] == [0.7, 0.6, 0.5, 0.4, 0.2]


@given(scores, scores, st.integers(0, 7), st.floats(0, 0.5))
def test_a_better_score_never_moves_a_hit_down(texts, images, place, more):
    lists = {TEXT: hits(TEXT, *texts), IMAGE: hits(IMAGE, *images)}
    if place >= len(texts):
        return
    chosen = lists[TEXT][place].id

    def place_in(texts):
        found = {TEXT: sorted(texts, key=lambda hit: -hit.retrieval_score), IMAGE: lists[IMAGE]}
        merged = merge(found, MergePolicy.CALIBRATED, CALIBRATION, 100)
        return [entry.hit.id for entry in merged].index(chosen)

    better = Scored(chosen, TEXT, texts[place] + more, {})
    others = [hit for hit in lists[TEXT] if hit.id != chosen]
    assert place_in([better, *others]) <= place_in(lists[TEXT])


@given(scores, scores, st.sampled_from([MergePolicy.CALIBRATED, MergePolicy.SCORE]))
def test_the_order_of_lists_and_shards_changes_nothing(texts, images, policy):
    found = {TEXT: hits(TEXT, *texts), IMAGE: hits(IMAGE, *images)}

    def merged(modalities, turn):
        shards = {m: [found[m][::2], found[m][1::2]][::turn] for m in modalities}
        lists = {m: join_shards(shards[m], 100) for m in modalities}
        return merge(lists, policy, CALIBRATION, 100)

    one = merged((TEXT, IMAGE), 1)
    assert merged((IMAGE, TEXT), -1) == one
    assert {entry.hit.id for entry in one} == {h.id for hits in found.values() for h in hits}


@given(st.floats(-2, 2), st.floats(0.1, 10), scores, scores)
def test_a_model_with_other_units_merges_the_same(shift, factor, texts, images):
    """A constant that a modality's scores have too much, and their unit, cancel out."""
    assume(texts and images)
    usual = {TEXT: 0.9 * factor, IMAGE: 0.2 * factor + shift}
    other = Calibration(usual, 0.1 * factor, "v")
    one = {TEXT: hits(TEXT, *texts), IMAGE: hits(IMAGE, *images)}
    two = {
        TEXT: hits(TEXT, *(factor * s for s in texts)),
        IMAGE: hits(IMAGE, *(factor * s + shift for s in images)),
    }
    plain, scaled = (
        merge(lists, MergePolicy.CALIBRATED, calibration, 100)
        for lists, calibration in ((one, CALIBRATION), (two, other))
    )
    by_id = {entry.hit.id: entry.score for entry in plain}
    assert all(entry.score == pytest.approx(by_id[entry.hit.id], abs=1e-6) for entry in scaled)


# -- what is usual


def things(count, width=64, seed=1):
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def with_gap(rows, cosine):
    """Return the rows turned towards a direction of their own, at this cosine to the others."""
    zeros = np.zeros((len(rows), 1), np.float32)
    aside = np.full_like(zeros, np.sqrt(1 - cosine**2))
    return ReferenceRows.of(np.hstack([cosine * rows, aside, zeros]))


def test_what_is_usual_is_the_best_hit_among_other_things():
    rows = np.repeat(np.eye(LEAST_THINGS, dtype=np.float32), 2, axis=0)  # each has a twin
    found = fit({TEXT: ReferenceRows.of(rows), IMAGE: ReferenceRows.of(rows)}, TEXT, "m")
    assert found.usual == {TEXT: 1.0, IMAGE: 1.0}
    alone = ReferenceRows.of(np.eye(LEAST_THINGS, dtype=np.float32))
    assert fit({TEXT: alone}, TEXT, "m").usual == {TEXT: 0.0}  # its own row is no hit


def test_a_calibration_measures_the_gap_of_a_model_whatever_the_collection():
    rows = things(64)
    straight = ReferenceRows.of(np.hstack([rows, np.zeros((64, 2), np.float32)]))
    found = fit({TEXT: straight, IMAGE: with_gap(rows, 0.5)}, TEXT, "m")
    assert found.usual[IMAGE] == pytest.approx(found.usual[TEXT] / 2, rel=1e-3)
    assert found.covers([TEXT, IMAGE])
    assert not found.covers([TEXT, PAIR])


def test_candidates_are_measured_as_candidates():
    rows = things(16)
    found = fit({TEXT: ReferenceRows.of(rows, -rows)}, TEXT, "m")
    assert found.usual[TEXT] != fit({TEXT: ReferenceRows.of(rows)}, TEXT, "m").usual[TEXT]


def test_the_things_that_all_modalities_have_are_measured():
    many, few = things(64), things(16)
    found = fit({TEXT: ReferenceRows.of(many), IMAGE: ReferenceRows.of(few)}, TEXT, "m")
    same = fit({TEXT: ReferenceRows.of(many[:16]), IMAGE: ReferenceRows.of(few)}, TEXT, "m")
    assert (found.usual, found.version) == (same.usual, same.version)


def test_a_version_changes_with_the_model_and_its_pool():
    one, two = ({TEXT: ReferenceRows.of(things(16, seed=seed))} for seed in (1, 2))
    versions = {fit(pool, TEXT, model).version for pool in (one, two) for model in ("m", "n")}
    assert len(versions) == 4


@pytest.mark.parametrize("pool", [{}, {IMAGE: things(16)}, {TEXT: things(LEAST_THINGS - 1)}])
def test_a_pool_that_tells_nothing_makes_no_calibration(pool):
    reference = {kind: ReferenceRows.of(rows) for kind, rows in pool.items()}
    assert fit(reference, TEXT, "m") is None


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
