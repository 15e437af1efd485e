"""Recall of one right picture, or of one right name, among all of a set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmesh.models.protocol import FloatMatrix

DEPTHS = (1, 5, 10)


def recall(
    queries: FloatMatrix, candidates: FloatMatrix, names: Sequence[str], asked: Sequence[int]
) -> list[float]:
    """Return recall at 1, 5 and 10: the share of queries with an equal name among the first.

    Row i of both matrices is called `names[i]`. Only the rows `asked` are queries; every row is a
    candidate. Equal scores rank in the order of the rows.
    """
    numbers = np.unique(np.asarray(names), return_inverse=True)[1]
    scores = queries[asked] @ candidates.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, : max(DEPTHS)]
    hits = numbers[order] == numbers[asked, None]
    return [float(hits[:, :depth].any(axis=1).mean()) for depth in DEPTHS]


def both_ways(
    texts: FloatMatrix, images: FloatMatrix, names: Sequence[str], asked: Sequence[int]
) -> dict[str, float]:
    """Return recall of pictures by text and of texts by picture, by a name for each figure."""
    figures = {}
    ways = {"text_to_image": (texts, images), "image_to_text": (images, texts)}
    for way, (queries, candidates) in ways.items():
        values = recall(queries, candidates, names, asked)
        for depth, value in zip(DEPTHS, values, strict=True):
            figures[f"{way}@{depth}"] = round(100 * value, 2)
    return figures
