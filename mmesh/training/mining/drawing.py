"""Modality-aware hard negatives, drawn from a ranking as MM-Embed does (arXiv 2411.02571).

Among the first 50 of all modalities there are two kinds. C1, of the wrong modality: above the
labelled positive, or anywhere when it is not there. C2, of the wanted modality but lacking: at the
ranks 46 to 50, as what is nearer may well be right. A kind is chosen with equal chance, and one of
it; a query with one kind only gets that.

What weeds out false negatives looks at C2 only. C1 is wrong by its modality, whatever it shows:
the picture of the very thing whose description is wanted is the best lesson of all.
"""

from __future__ import annotations

import enum
import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mmesh.content import Modality
from mmesh.search import MAX_RERANK

TOP, BELOW = 50, 45
SCORE_DIGITS = 4
"""Scores are rounded, so that copies tie: their last digits depend on what else is in a batch."""


class Kind(enum.Enum):
    """Why a candidate is a negative."""

    WRONG_MODALITY = "wrong_modality"
    LOW_RANK = "low_rank"


class Drop(enum.Enum):
    """Why a candidate of C2 is none after all."""

    MARGIN = "margin"
    SAME_GROUP = "same_group"
    JUDGED_TRUE = "judged_true"
    NOT_JUDGED = "not_judged"


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as a hard negative, and how many a query gets."""

    top: int = TOP
    below: int = BELOW
    """Candidates of the wanted modality count from the rank after this one."""
    margin: float | None = None
    """C2 must score below this part of the positive's score (NV-Retriever, arXiv 2407.15831)."""
    judge: float | None = None
    """C2 must be judged below this score by the reranker."""
    same_group: str = ""
    """C2 must not share the value of this attribute with a positive."""
    count: int = 1
    """Negatives of a query."""

    def __post_init__(self) -> None:
        """Refuse what leaves no ranks, or more than a search can have judged."""
        if self.judge is not None and self.top > MAX_RERANK:
            raise ValueError(f"top is {self.top}; at most {MAX_RERANK} hits are judged")
        if not 0 <= self.below < self.top:
            raise ValueError(f"below is {self.below}; 0 to {self.top - 1} leave ranks up to top")


class Ranked(NamedTuple):
    """A candidate of a ranking."""

    id: str
    modality: Modality
    score: float
    group: str = ""
    """What it must not share with a positive; empty for nothing."""


@dataclass(frozen=True, slots=True)
class Negative:
    """A candidate that was found to be a hard negative."""

    id: str
    modality: Modality
    kind: Kind
    rank: int
    """From 1."""
    score: float
    group: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Positives:
    """What is known of the candidates that answer a query."""

    ids: frozenset[str]
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Eligible:
    """The two kinds of a query, and what was taken out of the second."""

    wrong_modality: tuple[Negative, ...]
    low_rank: tuple[Negative, ...]
    positive_rank: int
    """Of the best positive; 0 when it is not in the ranking."""
    dropped: Mapping[Drop, int] = field(default_factory=dict)

    def without(self, reasons: Mapping[str, Drop]) -> Eligible:
        """Return what is left of C2 without these ids."""
        if not reasons:
            return self
        kept = tuple(one for one in self.low_rank if one.id not in reasons)
        dropped = Counter(self.dropped)
        dropped.update(reasons[one.id] for one in self.low_rank if one.id in reasons)
        return Eligible(self.wrong_modality, kept, self.positive_rank, dict(dropped))


def in_order(ranking: Collection[Ranked], top: int, digits: int = SCORE_DIGITS) -> list[Ranked]:
    """Return the first of a ranking: the highest rounded scores, then the lower ids."""
    return sorted(ranking, key=lambda one: (-round(one.score, digits), one.id))[:top]


def eligible(
    ranking: Sequence[Ranked], positives: Positives, wanted: Modality, rules: Rules
) -> Eligible:
    """Return both kinds of a ranking that is in order, without what margin and group forbid."""
    ranked = list(enumerate(ranking[: rules.top], start=1))
    place = next((rank for rank, one in ranked if one.id in positives.ids), 0)
    wrong = [
        _negative(rank, one, Kind.WRONG_MODALITY)
        for rank, one in ranked
        if one.modality is not wanted
        and one.id not in positives.ids
        and (not place or rank < place)
    ]
    low = [
        _negative(rank, one, Kind.LOW_RANK)
        for rank, one in ranked
        if one.modality is wanted and one.id not in positives.ids and rank > rules.below
    ]
    found = Eligible(tuple(wrong), tuple(low), place)
    best = ranked[place - 1][1].score if place else None
    return found.without(_forbidden(low, positives.groups, best, rules))


def _negative(rank: int, one: Ranked, kind: Kind) -> Negative:
    return Negative(one.id, one.modality, kind, rank, round(one.score, SCORE_DIGITS), one.group)


def _forbidden(
    low: Sequence[Negative], groups: Collection[str], best: float | None, rules: Rules
) -> dict[str, Drop]:
    """Return what margin and group take; `best` is the positive's score, None where it is below.

    All that is ranked scores more than a positive that is not, so no margin is kept to that.
    """
    found = {}
    for one in low:
        if one.group and one.group in groups:
            found[one.id] = Drop.SAME_GROUP
        elif rules.margin is not None and (best is None or one.score > _most(best, rules.margin)):
            found[one.id] = Drop.MARGIN
    return found


def _most(best: float, margin: float) -> float:
    """Return the highest score that keeps the margin; below zero a part would be more than all."""
    return round(best - (1 - margin) * abs(best), SCORE_DIGITS)


def draw(found: Eligible, count: int, seed: int, query: str) -> tuple[Negative, ...]:
    """Return up to `count` different negatives; the same for the same seed and query.

    Each candidate has a lot of its own, so that neither order nor other candidates change who wins.
    """
    kinds = [
        sorted(kind, key=lambda one: _lot(seed, query, one.id))
        for kind in (found.wrong_modality, found.low_rank)
    ]
    drawn: list[Negative] = []
    while len(drawn) < count and any(kinds):
        chosen = kinds[_lot(seed, query, f"\0{len(drawn)}")[0] & 1] or kinds[0] or kinds[1]
        drawn.append(chosen.pop(0))
    return tuple(drawn)


def _lot(seed: int, query: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{query}\0{name}".encode()).digest()
