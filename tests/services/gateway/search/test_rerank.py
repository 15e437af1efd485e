"""How far a judge's scores change the order: the places they may take, and how much they weigh."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesh.content import Modality
from services.gateway.interfaces import Judge, Scored
from services.gateway.search.ranking import Ranked
from services.gateway.search.rerank import places_to_judge, reorder

TEXT, IMAGE, PAIR = Modality
ALL, ONE_BY_ONE = Judge({}, compares_modalities=True), Judge({}, compares_modalities=False)
WHOLLY = dict.fromkeys(Modality, 1.0)


def ranked(*hits):
    """Return a list from (id, modality, retrieval score), with scores that fall."""
    return [
        Ranked(Scored(name, modality, score, {}), 1.0 - place / 100)
        for place, (name, modality, score) in enumerate(hits)
    ]


def ids_of(entries):
    return "".join(entry.hit.id for entry in entries)


TEXTS = ranked(("a", TEXT, 0.9), ("b", TEXT, 0.8), ("c", TEXT, 0.7))
MIXED = ranked(("a", TEXT, 0.9), ("i", IMAGE, 0.3), ("b", TEXT, 0.8), ("j", IMAGE, 0.2))


@pytest.mark.parametrize(
    ("weights", "depth", "places"),
    [
        (WHOLLY, 10, [0, 1, 2, 3]),
        (WHOLLY, 2, [0, 1]),
        ({TEXT: 0.5}, 10, [0, 2]),
        ({TEXT: 0.0, IMAGE: 1.0}, 10, [1, 3]),
        ({}, 10, []),
    ],
)
def test_only_what_the_judge_has_a_say_on_is_judged(weights, depth, places):
    assert places_to_judge(MIXED, depth, weights) == places


def test_a_judge_that_is_trusted_wholly_makes_the_order():
    result = reorder(TEXTS, {0: 0.1, 1: 0.2, 2: 0.9}, WHOLLY, ALL)
    assert ids_of(result) == "cba"
    assert [entry.rerank_score for entry in result] == [0.9, 0.2, 0.1]
    assert [entry.score for entry in result] == [entry.score for entry in TEXTS]


@pytest.mark.parametrize(("weight", "order"), [(0.0, "abc"), (0.3, "abc"), (0.7, "cba")])
def test_a_judge_changes_the_order_as_far_as_it_is_trusted(weight, order):
    weights = dict.fromkeys(Modality, weight)
    assert ids_of(reorder(TEXTS, {0: 0.1, 1: 0.5, 2: 0.9}, weights, ALL)) == order


def test_hits_without_a_score_keep_their_places():
    result = reorder(TEXTS, {0: 0.1, 2: 0.9}, WHOLLY, ALL)
    assert ids_of(result) == "cba"
    assert [entry.rerank_score for entry in result] == [0.9, None, 0.1]


def test_a_judge_that_cannot_compare_modalities_changes_no_share_of_any():
    scores = {0: 0.1, 1: 0.8, 2: 0.2, 3: 0.9}
    assert ids_of(reorder(MIXED, scores, WHOLLY, ONE_BY_ONE)) == "bjai"
    assert ids_of(reorder(MIXED, scores, WHOLLY, ALL)) == "jiba"


def test_between_modalities_places_stand_for_scores_that_do_not_compare():
    weights = dict.fromkeys(Modality, 0.0)
    scores = dict.fromkeys(range(4), 0.5)
    assert ids_of(reorder(MIXED, scores, weights, ALL)) == "aibj"


@pytest.mark.parametrize("scores", [{}, {1: 0.5}, dict.fromkeys(range(3), 0.5)])
def test_scores_that_say_nothing_change_nothing(scores):
    assert ids_of(reorder(TEXTS, scores, WHOLLY, ALL)) == "abc"


hits = st.lists(st.tuples(st.sampled_from(Modality), st.floats(-1, 1)), min_size=1, max_size=12)


@given(hits, st.data())
def test_no_hit_is_lost_and_places_keep_their_scores(found, data):
    before = ranked(*((chr(97 + n), *one) for n, one in enumerate(found)))
    places = data.draw(st.sets(st.integers(0, len(before) - 1)))
    scores = {place: data.draw(st.floats(0, 1)) for place in places}
    weights = {modality: data.draw(st.floats(0, 1)) for modality in Modality}
    judge = data.draw(st.sampled_from([ALL, ONE_BY_ONE]))
    after = reorder(before, scores, weights, judge)
    assert sorted(ids_of(after)) == sorted(ids_of(before))
    assert [entry.score for entry in after] == [entry.score for entry in before]
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        if place not in scores:
            assert new == old
        elif judge is ONE_BY_ONE:
            assert new.hit.modality is old.hit.modality
