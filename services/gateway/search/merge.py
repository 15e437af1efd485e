"""Rank fusion: lists of several modalities become one, by one of four policies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest

from mmesh.content import Modality
from mmesh.search import MergePolicy
from services.gateway.interfaces import Scored
from services.gateway.search.calibration import Calibration
from services.gateway.search.ranking import Lists, Ranked

RANK_DISCOUNT = 0.3
"""Spreads that a hit loses for each e-fold of its rank."""
RRF_K = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)."""


def merge(
    lists: Lists, policy: MergePolicy, calibration: Calibration | None, limit: int
) -> list[Ranked]:
    """Return the first `limit` hits of the merged list; each list must be in order.

    One list alone keeps its scores. Without a calibration, raw scores stand in for standard ones.
    """
    full = {modality: hits for modality, hits in lists.items() if hits}
    if len(full) <= 1:
        return [Ranked(hit, hit.retrieval_score) for hits in full.values() for hit in hits][:limit]
    standard = _standardise(calibration, full)
    if policy is MergePolicy.SCORE:
        merged = _by_score(full, lambda hit: hit.retrieval_score)
    elif policy is MergePolicy.CALIBRATED:
        merged = _by_discounted_score(full, standard)
    else:
        turns = sorted(full.values(), key=lambda hits: -standard(hits[0]))
        merged = _rrf(turns) if policy is MergePolicy.RRF else _interleave(turns)
    return merged[:limit]


def needs_calibration(policy: MergePolicy, modalities: Sequence[Modality]) -> bool:
    """Whether merging lists of these modalities uses a calibration."""
    return len(modalities) > 1 and policy is not MergePolicy.SCORE


def _standardise(calibration: Calibration | None, lists: Lists) -> Callable[[Scored], float]:
    if calibration is None or not lists.keys() <= calibration.scales.keys():
        return lambda hit: hit.retrieval_score
    return lambda hit: calibration.standard(hit.modality, hit.retrieval_score)


def _by_score(lists: Lists, score: Callable[[Scored], float]) -> list[Ranked]:
    ranked = [Ranked(hit, score(hit)) for hits in lists.values() for hit in hits]
    return sorted(ranked, key=lambda entry: (-entry.score, entry.hit.id))


def _by_discounted_score(lists: Lists, score: Callable[[Scored], float]) -> list[Ranked]:
    """Lower ranks count less, so that one list does not take all places on a small advantage."""
    ranked = [
        Ranked(hit, score(hit) - RANK_DISCOUNT * math.log(rank))
        for hits in lists.values()
        for rank, hit in enumerate(hits, start=1)
    ]
    return sorted(ranked, key=lambda entry: (-entry.score, entry.hit.id))


def _rrf(turns: Sequence[Sequence[Scored]]) -> list[Ranked]:
    """Equal ranks go by turn, so the best list leads."""
    ranked = [
        Ranked(hit, 1 / (RRF_K + rank)) for hits in turns for rank, hit in enumerate(hits, start=1)
    ]
    return sorted(ranked, key=lambda entry: -entry.score)


def _interleave(turns: Sequence[Sequence[Scored]]) -> list[Ranked]:
    hits = [hit for round_ in zip_longest(*turns) for hit in round_ if hit is not None]
    return [Ranked(hit, 1 / place) for place, hit in enumerate(hits, start=1)]
