"""Hits on their way through the gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmesh.content import Modality
from services.gateway.interfaces import Scored


@dataclass(frozen=True, slots=True)
class Judged:
    """How the judge came into the order of a hit."""

    weight: float
    """Share of its score."""
    mixed: float
    """What hits that compare are ordered by."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate in the merged list: `score` is what the list is ordered by."""

    hit: Scored
    score: float
    rerank_score: float | None = None
    judged: Judged | None = None


Lists = Mapping[Modality, Sequence[Scored]]


def join_shards(answers: Sequence[Sequence[Scored]], limit: int) -> list[Scored]:
    """Return the best `limit` of several lists of one modality; ties go by id."""
    found = [hit for answer in answers for hit in answer]
    return sorted(found, key=lambda hit: (-hit.retrieval_score, hit.id))[:limit]
