"""Rank fusion: lists of several modalities become one, by one of four policies."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import partial
from itertools import zip_longest
from typing import TypeGuard

from mmesh.content import Modality
from mmesh.search import MergePolicy
from services.gateway.interfaces import Scored
from services.gateway.search.calibration import Calibration
from services.gateway.search.ranking import Lists, Ranked

RANK_DISCOUNT = 0.3
"""Spreads that a hit loses for each e-fold of its rank; see docs/adr/0030."""
RRF_K = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)."""


SAME = 1 - 1e-4
"""Similarity from which on two pictures are one: segments may keep half precision."""


def merge(
    lists: Lists,
    policy: MergePolicy,
    calibration: Calibration | None,
    limit: int,
    query: Modality | None = None,
) -> list[Ranked]:
    """Return the first `limit` hits of the merged list; each list must be in order.

    One list alone keeps its scores. Without a calibration, lists are merged by raw scores.
    Where the query is a picture, the calibrated list begins with those that equal it.
    """
    full = {modality: hits for modality, hits in lists.items() if hits}
    if len(full) <= 1:
        return [Ranked(hit, hit.retrieval_score) for hits in full.values() for hit in hits][:limit]
    if policy is MergePolicy.SCORE:
        merged = _by_score(full, None)
    elif policy is MergePolicy.CALIBRATED:
        merged = _equals_first(_by_score(full, calibration), query)
    else:
        leads = partial(list_score, calibration, full)
        turns = sorted(full.values(), key=lambda hits: -leads(hits[0], 1))
        merged = _rrf(turns) if policy is MergePolicy.RRF else _interleave(turns)
    return merged[:limit]


def needs_calibration(policy: MergePolicy, modalities: Sequence[Modality]) -> bool:
    """Whether merging lists of these modalities uses a calibration."""
    return len(modalities) > 1 and policy is not MergePolicy.SCORE


def list_score(
    calibration: Calibration | None, lists: Collection[Modality], hit: Scored, rank: int
) -> float:
    """Return what the hit at this rank of its list is merged by, from 1.

    That is its standard score less the discount: lower ranks count less, so that one list does not
    take all places on a small advantage. Where the calibration does not know all lists, it is the
    raw score.
    """
    if not applies(calibration, lists):
        return hit.retrieval_score
    return calibration.standard(hit.modality, hit.retrieval_score) - rank_discount(rank)


def applies(calibration: Calibration | None, lists: Collection[Modality]) -> TypeGuard[Calibration]:
    """Tell whether lists of these modalities can be compared by the calibration."""
    return calibration is not None and calibration.covers(lists)


def _by_score(lists: Lists, calibration: Calibration | None) -> list[Ranked]:
    """Order hits by score, the same in whatever order lists come; ties go by id."""
    ranked = [
        Ranked(hit, list_score(calibration, lists, hit, rank))
        for hits in lists.values()
        for rank, hit in enumerate(hits, start=1)
    ]
    return sorted(ranked, key=lambda entry: (-entry.score, entry.hit.id))


def equals_query(hit: Scored, query: Modality | None) -> bool:
    """Tell whether a hit is the very picture that is asked with; see docs/adr/0028."""
    return query is Modality.IMAGE is hit.modality and hit.retrieval_score >= SAME


def _equals_first(merged: Sequence[Ranked], query: Modality | None) -> list[Ranked]:
    """Let what equals the query lead, with the score of the first, so that scores still fall."""
    same = [Ranked(e.hit, merged[0].score) for e in merged if equals_query(e.hit, query)]
    return [*same, *(e for e in merged if not equals_query(e.hit, query))]


def rank_discount(rank: int) -> float:
    """Return what a hit at this place of its list loses, from 1."""
    return RANK_DISCOUNT * math.log(rank)


def _rrf(turns: Sequence[Sequence[Scored]]) -> list[Ranked]:
    """Equal ranks go by turn, so the best list leads."""
    ranked = [
        Ranked(hit, 1 / (RRF_K + rank)) for hits in turns for rank, hit in enumerate(hits, start=1)
    ]
    return sorted(ranked, key=lambda entry: -entry.score)


def _interleave(turns: Sequence[Sequence[Scored]]) -> list[Ranked]:
    hits = [hit for round_ in zip_longest(*turns) for hit in round_ if hit is not None]
    return [Ranked(hit, 1 / place) for place, hit in enumerate(hits, start=1)]
