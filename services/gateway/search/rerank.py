"""Second-stage ranking: a judge's scores change the order as far as the judge is trusted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mmesh.content import Modality
from services.gateway.interfaces import Judge, Weights
from services.gateway.search.ranking import Judged, Ranked


def places_to_judge(ranked: Sequence[Ranked], depth: int, weights: Weights) -> list[int]:
    """Return the places among the first `depth` whose candidates the judge has a say on."""
    first = enumerate(ranked[:depth])
    return [place for place, entry in first if weights.get(entry.hit.modality, 0.0) > 0]


def reorder(
    ranked: Sequence[Ranked], scores: Mapping[int, float], weights: Weights, judge: Judge
) -> list[Ranked]:
    """Return the list with its judged hits, given by place, in their new order.

    Hits change places only among those that the judge can compare: all, or those of one modality.
    So the merge decides how many of each modality there are and where, the judge which. Hits
    without a score keep their places, and every place keeps its `score`, so scores still fall.
    """
    result = list(ranked)
    for places in _comparable(ranked, scores, judge):
        mixed = _mixed(ranked, places, scores, weights)
        order = [places[i] for i in np.argsort(-mixed, kind="stable")]  # ties stay as they were
        mixed_of = dict(zip(places, mixed.tolist(), strict=True))
        for place, source in zip(places, order, strict=True):
            entry = ranked[source]
            result[place] = Ranked(
                entry.hit,
                ranked[place].score,
                scores[source],
                Judged(weights[entry.hit.modality], mixed_of[source]),
            )
    return result


def _comparable(
    ranked: Sequence[Ranked], scores: Mapping[int, float], judge: Judge
) -> Iterable[list[int]]:
    judged = sorted(scores)
    if judge.compares_modalities:
        return [judged]
    groups: dict[Modality, list[int]] = {}
    for place in judged:
        groups.setdefault(ranked[place].hit.modality, []).append(place)
    return groups.values()


def _mixed(
    ranked: Sequence[Ranked], places: Sequence[int], scores: Mapping[int, float], weights: Weights
) -> NDArray[np.float64]:
    """Return the standardised scores of both stages, mixed by the weights, for each place.

    Raw retrieval scores of two modalities do not compare, so there the place stands for them.
    """
    hits = [ranked[place].hit for place in places]
    alike = len({hit.modality for hit in hits}) <= 1
    first = [hit.retrieval_score for hit in hits] if alike else [-float(p) for p in places]
    share = np.array([weights[hit.modality] for hit in hits])
    judged = _standard([scores[place] for place in places])
    mixed: NDArray[np.float64] = (1 - share) * _standard(first) + share * judged
    return mixed


def _standard(scores: Sequence[float]) -> NDArray[np.float64]:
    values = np.array(scores, np.float64)
    spread = values.std() if values.size else 0.0
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)
