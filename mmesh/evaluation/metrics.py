"""Effectiveness metrics of one ranked list: hit rate, recall, MRR, nDCG, MAP, modality mismatch.

A metric is a function of one query's `Ranking`; the figure of a task is its mean over the queries.
`metric("ndcg@10")` finds one by name. Higher is better for all but `mismatch`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from mmesh.content import Modality


class DuplicateHits(ValueError):
    """A ranked list holds a candidate twice, so no metric of it means anything."""


class UnknownMetric(ValueError):
    """There is no metric of this name."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """What was found for one query, best first, beside what was wanted.

    Raises:
        DuplicateHits: a candidate is in the list twice.
    """

    found: Sequence[str]
    grades: Mapping[str, int]
    """Relevance of the judged candidates; 0 or less means judged and not relevant."""
    modalities: Sequence[Modality] = ()
    """Those of the found candidates; empty when nobody asks for them."""
    wanted: Modality | None = None
    """Modality that the query is after; None when any will do."""

    def __post_init__(self) -> None:
        """Refuse duplicates, as CIRCO's and trec_eval's scripts do."""
        if len(set(self.found)) != len(self.found):
            twice = next(one for one, count in Counter(self.found).items() if count > 1)
            raise DuplicateHits(f"{twice!r} is in the ranked list twice")

    @property
    def relevant(self) -> frozenset[str]:
        """The candidates that answer the query."""
        return frozenset(one for one, grade in self.grades.items() if grade > 0)


Metric = Callable[[Ranking], float]


def hit_at(ranking: Ranking, k: int) -> float:
    """Return 1 if any relevant candidate is among the first k, else 0: the hit rate.

    UniIR prints this as "Recall@k" (Wei et al., arXiv 2311.17136, `compute_recall_at_k`), and so
    do MM-Embed and all tables of M-BEIR; trec_eval calls it `success_k`, mteb `hit_rate_at_k`.
    """
    return float(not ranking.relevant.isdisjoint(ranking.found[:k]))


def recall_at(ranking: Ranking, k: int) -> float:
    """Return the share of all relevant candidates that is among the first k.

    trec_eval's `recall_k` (Buckley and Voorhees, TREC 2005). Candidates that are judged but not in
    the pool count in the denominator, as in trec_eval.
    """
    relevant = ranking.relevant
    return len(relevant.intersection(ranking.found[:k])) / len(relevant) if relevant else 0.0


def reciprocal_rank_at(ranking: Ranking, k: int) -> float:
    """Return 1 / rank of the first relevant candidate, or 0 if none is among the first k.

    Its mean is MRR@k (Voorhees, TREC-8 question answering track, 1999; MS MARCO uses k = 10).
    """
    relevant = ranking.relevant
    ranks = (rank for rank, one in enumerate(ranking.found[:k], start=1) if one in relevant)
    return 1.0 / next(ranks, math.inf)


def ndcg_at(ranking: Ranking, k: int) -> float:
    """Return the normalised discounted cumulative gain of the first k.

    Järvelin and Kekäläinen, TOIS 20(4), 2002, with gain = grade and discount = log2(rank + 1): the
    form of trec_eval's `ndcg_cut_k`, which BEIR and MTEB report.
    """
    gains = [max(ranking.grades.get(one, 0), 0) for one in ranking.found[:k]]
    best = sorted((grade for grade in ranking.grades.values() if grade > 0), reverse=True)[:k]
    return _discounted(gains) / _discounted(best) if best else 0.0


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def average_precision_at(ranking: Ranking, k: int) -> float:
    """Return the average precision of the first k, normalised by min(relevant, k).

    mAP@k as CIRCO defines it (Baldrati et al., ICCV 2023, arXiv 2303.15247, and
    `src/evaluation.py` of its repository). trec_eval's `map_cut_k` divides by all relevant
    candidates, so it is smaller where a query has more than k of them.
    """
    relevant, hits, total = ranking.relevant, 0, 0.0
    for rank, one in enumerate(ranking.found[:k], start=1):
        if one in relevant:
            hits += 1
            total += hits / rank
    return total / min(len(relevant), k) if relevant else 0.0


def target_hit_at(ranking: Ranking, k: int) -> float:
    """Return 1 if a candidate of the highest grade is among the first k, else 0.

    CIRCO's Recall@k: of the several ground truths, only the picture that the caption was written
    for counts; its reader gives that one a higher grade.
    """
    best = max(ranking.grades.values(), default=0)
    top = {one for one, grade in ranking.grades.items() if grade == best > 0}
    return float(not top.isdisjoint(ranking.found[:k]))


def subset_recall_at(ranking: Ranking, subset: Set[str], k: int) -> float:
    """Return the hit rate among the first k of the found candidates that belong to `subset`.

    CIRR's Recall_subset@k (Liu et al., ICCV 2021, arXiv 2108.04024): the subset is the query's
    group of six similar pictures without the reference. The ranked list must reach deep enough to
    hold the whole group, or come from a search within the group.
    """
    within = [one for one in ranking.found if one in subset]
    return hit_at(Ranking(within, ranking.grades), k)


def mismatch(ranking: Ranking) -> float:
    """Return 1 if the first hit is of another modality than the query is after, else 0.

    The modality mismatch rate: how far a retriever leans to one modality, whatever is asked for,
    which is what modality-aware hard negatives are mined against (MM-Embed, arXiv 2411.02571).
    0 when the query is after any modality; 1 when nothing was found.
    """
    if ranking.wanted is None:
        return 0.0
    return float(not ranking.modalities or ranking.modalities[0] is not ranking.wanted)


def share_by_modality(rankings: Sequence[Ranking], k: int) -> dict[Modality, float]:
    """Return which part of all the first k hits has each modality."""
    counts = Counter(one for ranking in rankings for one in ranking.modalities[:k])
    total = sum(counts.values())
    return {modality: counts[modality] / total if total else 0.0 for modality in Modality}


_AT_K: dict[str, Callable[[Ranking, int], float]] = {
    "hit": hit_at,
    "recall": recall_at,
    "mrr": reciprocal_rank_at,
    "ndcg": ndcg_at,
    "map": average_precision_at,
    "target_hit": target_hit_at,
}
LOWER_IS_BETTER = frozenset({"mismatch"})


def metric(name: str) -> Metric:
    """Return the metric called `name`, such as "hit@5", "map@10" or "mismatch".

    Raises:
        UnknownMetric: no metric has this name.
    """
    if name == "mismatch":
        return mismatch
    base, _, cut = name.partition("@")
    if base not in _AT_K or not cut.isdecimal() or int(cut) < 1:
        known = ", ".join([*(f"{base}@k" for base in _AT_K), "mismatch"])
        raise UnknownMetric(f"there is no metric {name!r}; there are {known}")
    at_k, k = _AT_K[base], int(cut)
    return lambda ranking: at_k(ranking, k)


def depth(name: str) -> int:
    """Return how many hits a metric looks at."""
    return int(name.partition("@")[2] or 1)
