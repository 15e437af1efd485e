"""The contrastive loss (InfoNCE) over in-batch and mined negatives, without false negatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmesh.training.examples import Lesson, Told, known_answers

HIGHEST_SCALE = 100.0


class Temperature(nn.Module):  # type: ignore[misc]  # torch is not followed
    """By what scores are divided: set, or learned as the logarithm of its inverse."""

    def __init__(self, value: float, *, learned: bool) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(value)), requires_grad=learned)

    @property
    def scale(self) -> Tensor:
        """By what scores are multiplied."""
        return self.log_scale.exp().clamp(max=HIGHEST_SCALE)


@dataclass(frozen=True, slots=True)
class Contrast:
    """The loss of a batch, and how well its positives are found."""

    loss: Tensor
    accuracy: float
    """Share of queries whose positive scores highest."""
    margin: float
    """Mean cosine of the positives above that of the best other candidate."""


def contrast(queries: Tensor, candidates: Tensor, masked: Tensor, scale: Tensor) -> Contrast:
    """Return the loss of n queries; candidate i answers query i, the others are negatives.

    Args:
        queries: unit rows (n, dim).
        candidates: unit rows (m, dim), the n positives first.
        masked: true where a candidate is no negative of a query (n, m).
        scale: one over the temperature.
    """
    cosines = queries @ candidates.T
    wanted = torch.arange(len(queries), device=queries.device)
    loss = functional.cross_entropy((cosines * scale).masked_fill(masked, -math.inf), wanted)
    with torch.no_grad():
        others = cosines.masked_fill(masked, -math.inf).scatter(1, wanted[:, None], -math.inf)
        margins = cosines.diagonal() - others.amax(dim=1)
        known = margins.isfinite()
        margin = float(margins[known].mean()) if known.any() else 0.0
        return Contrast(loss, float((margins > 0).float().mean()), margin)


def false_negatives(
    lessons: Sequence[Lesson], queries: Sequence[Told], candidates: Sequence[Told]
) -> Any:
    """Return where a candidate is known to answer a query that it is no positive of, (n, m).

    It has the id, the content or a picture of one of the query's answers; or it answers a query
    that is the same.
    """
    columns: dict[str, list[int]] = {}
    for column, candidate in enumerate(candidates):
        for key in candidate.keys:
            columns.setdefault(key, []).append(column)
    asked = [
        (one.content.digest(), lesson.example.instruction)
        for one, lesson in zip(queries, lessons, strict=True)
    ]
    answers: dict[tuple[bytes, str], set[str]] = {}
    for row, lesson in enumerate(lessons):
        answers.setdefault(asked[row], set()).update(known_answers(lesson.example, candidates[row]))
    masked = torch.zeros(len(lessons), len(candidates), dtype=torch.bool)
    for row, question in enumerate(asked):
        masked[row, [c for known in answers[question] for c in columns.get(known, ())]] = True
        masked[row, row] = False
    return masked
