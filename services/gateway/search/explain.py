"""Why hits are where they are: the numbers of each stage, made anew for those who ask."""

from __future__ import annotations

from collections.abc import Callable

from mmesh.content import Modality
from mmesh.search import Explanation, MergePolicy
from services.gateway.search.calibration import Calibration
from services.gateway.search.merge import applies, equals_query, merge, rank_discount
from services.gateway.search.ranking import Lists, Ranked


def explainer(
    lists: Lists,
    policy: MergePolicy,
    calibration: Calibration | None,
    limit: int,
    query: Modality,
) -> Callable[[Ranked], Explanation]:
    """Return a function that explains a hit of the list that `merge` made of the same."""
    merged = {
        entry.hit.id: (rank, entry.score)
        for rank, entry in enumerate(merge(lists, policy, calibration, limit, query), start=1)
    }
    list_ranks = {hit.id: rank for hits in lists.values() for rank, hit in enumerate(hits, start=1)}
    full = [modality for modality, hits in lists.items() if hits]
    is_merged = len(full) > 1

    def explain(entry: Ranked) -> Explanation:
        hit, judged = entry.hit, entry.judged
        merge_rank, merge_score = merged[hit.id]
        list_rank = list_ranks[hit.id]
        is_calibrated = is_merged and policy is MergePolicy.CALIBRATED
        standard, discount = None, 0.0
        if is_merged and applies(calibration, full):
            standard = calibration.standard(hit.modality, hit.retrieval_score)
            discount = rank_discount(list_rank) if is_calibrated else 0.0
        return Explanation(
            list_rank=list_rank,
            standard_score=standard,
            rank_discount=discount,
            merge_score=merge_score,
            merge_rank=merge_rank,
            judge_weight=judged.weight if judged else None,
            mixed_score=judged.mixed if judged else None,
            equals_query=is_calibrated and equals_query(hit, query),
        )

    return explain
