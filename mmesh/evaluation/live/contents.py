"""Rows of data sets as content, their pictures read from disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmesh.candidates import Candidate
from mmesh.content import AttributeValue, Content, Image, Part
from mmesh.evaluation.datasets.dataset import Broken, PoolRow, Query
from mmesh.evaluation.rejections import BROKEN, NO_PICTURE, TWICE, Rejections
from mmesh.evaluation.survey import hash_of

POOLS = "pools"
"""Attribute with the local pools of a candidate."""


def content_of(row: PoolRow | Query) -> Content:
    """Return the content of a row: its picture, then its text.

    Raises:
        OSError: the picture cannot be read.
    """
    parts: list[Part] = [] if row.image is None else [Image(row.image.read_bytes())]
    return Content((*parts, row.text) if row.text else tuple(parts))


def candidates_of(
    rows: Sequence[PoolRow | Broken], seen: set[int], twice: frozenset[int], refused: Rejections
) -> Iterator[Candidate]:
    """Yield the candidates of rows; what gives none is counted in `refused`.

    `twice` has the hashes of ids that come more than once, and `seen` those of them that came.
    """
    for row in rows:
        if isinstance(row, Broken):
            refused.add(row.where, BROKEN, row.reason)
            continue
        if twice and (key := hash_of(row.id)) in twice:
            if key in seen:
                refused.add(row.where, TWICE, f"{row.id!r} came before")
                continue
            seen.add(key)
        try:
            content = content_of(row)
        except OSError as error:
            refused.add(row.where, NO_PICTURE, f"{row.image}: {error.strerror or error}")
            continue
        attributes: dict[str, AttributeValue] = dict(row.attributes)
        yield Candidate(row.id, content, attributes | {POOLS: row.pools})
