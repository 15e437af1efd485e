"""Hard negatives are those of the paper, whatever the ranking; an oracle says which these are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesh.content import Modality
from mmesh.training.mining.drawing import (
    SCORE_DIGITS,
    Drop,
    Eligible,
    Kind,
    Negative,
    Positives,
    Ranked,
    Rules,
    draw,
    eligible,
    in_order,
)

WANTED = Modality.IMAGE


@st.composite
def rankings(draw_from: st.DrawFn) -> list[Ranked]:
    """A ranking in order of up to 70 candidates, some of which share scores and groups."""
    size = draw_from(st.integers(0, 70))
    kinds = draw_from(st.lists(st.sampled_from(Modality), min_size=size, max_size=size))
    scores = draw_from(st.lists(st.integers(-20, 20), min_size=size, max_size=size))
    groups = draw_from(st.lists(st.sampled_from("abc "), min_size=size, max_size=size))
    made = [
        Ranked(f"c{number}", kind, score / 20, group.strip())
        for number, (kind, score, group) in enumerate(zip(kinds, scores, groups, strict=True))
    ]
    return in_order(made, 70)


positive_ids = st.frozensets(st.integers(0, 80).map("c{}".format), min_size=1, max_size=4)


def paper(ranking: list[Ranked], positives: frozenset[str]) -> tuple[set[str], set[str]]:
    """The reference: top 50, k' = 45."""
    top = ranking[:50]
    rank = next((i for i, one in enumerate(top) if one.id in positives), len(top))
    wrong = {one.id for one in top[:rank] if one.modality is not WANTED}
    low = {one.id for one in top[45:] if one.modality is WANTED and one.id not in positives}
    return wrong, low


def ids(negatives: tuple[Negative, ...]) -> set[str]:
    return {one.id for one in negatives}


@given(rankings(), positive_ids)
def test_the_two_kinds_are_those_of_the_paper(ranking, positives) -> None:
    found = eligible(ranking, Positives(positives), WANTED, Rules())
    wrong, low = paper(ranking, positives)
    assert ids(found.wrong_modality) == wrong
    assert ids(found.low_rank) == low
    places = {one.id: rank for rank, one in enumerate(ranking, start=1)}
    for one in (*found.wrong_modality, *found.low_rank):
        assert one.rank == places[one.id] <= 50
    assert all(one.rank > 45 for one in found.low_rank)


@given(rankings(), positive_ids, st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_margin_and_group_take_from_the_second_kind_only(ranking, positives, margin) -> None:
    known = Positives(positives, frozenset("a"))
    plain = eligible(ranking, Positives(positives), WANTED, Rules())
    found = eligible(ranking, known, WANTED, Rules(margin=margin, same_group="group"))
    assert found.wrong_modality == plain.wrong_modality
    best = next((one.score for one in ranking[:50] if one.id in positives), -9.0)
    limit = round(best - (1 - margin) * abs(best), SCORE_DIGITS)
    for one in plain.low_rank:
        forbidden = one.group == "a" or one.score > limit
        assert (one in found.low_rank) is not forbidden
    assert sum(found.dropped.values()) == len(plain.low_rank) - len(found.low_rank)


@given(rankings(), positive_ids, st.integers(1, 12), st.integers(0, 5))
def test_a_seed_and_a_query_decide_what_is_drawn(ranking, positives, count, seed) -> None:
    found = eligible(ranking, Positives(positives), WANTED, Rules())
    drawn = draw(found, count, seed, "q")
    assert drawn == draw(found, count, seed, "q")
    there = {*found.wrong_modality, *found.low_rank}
    assert len(set(drawn)) == len(drawn) == min(count, len(there))
    assert set(drawn) <= there


def test_the_two_kinds_have_equal_chances_whatever_their_sizes() -> None:
    wrong = tuple(Negative(f"w{n}", Modality.TEXT, Kind.WRONG_MODALITY, n, 1.0) for n in range(40))
    low = (Negative("low", WANTED, Kind.LOW_RANK, 46, 0.1),)
    found = Eligible(wrong, low, 41)
    kinds = [draw(found, 1, 7, f"q{n}")[0].kind for n in range(2000)]
    assert 900 < kinds.count(Kind.LOW_RANK) < 1100


def test_what_is_dropped_is_counted_by_reason() -> None:
    low = (
        Negative("a", WANTED, Kind.LOW_RANK, 46, 0.1),
        Negative("b", WANTED, Kind.LOW_RANK, 47, 0),
    )
    found = Eligible((), low, 1).without({"a": Drop.JUDGED_TRUE})
    assert ids(found.low_rank) == {"b"}
    assert found.dropped == {Drop.JUDGED_TRUE: 1}


def test_ties_rank_by_id_and_scores_that_differ_in_the_last_digits_tie() -> None:
    close = [Ranked("b", WANTED, 0.5), Ranked("a", WANTED, 0.5 - 1e-6), Ranked("c", WANTED, 0.6)]
    assert [one.id for one in in_order(close, 3)] == ["c", "a", "b"]


def test_rules_without_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="below is 50"):
        Rules(below=50)
    with pytest.raises(ValueError, match="at most 256"):
        Rules(top=300, judge=0.5)
