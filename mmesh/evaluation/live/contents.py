"""Rows of data sets as content, their pictures read from disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmesh.candidates import Candidate
from mmesh.content import AttributeValue, Content, Image, Part
from mmesh.evaluation.datasets.dataset import Broken, PoolRow, Query
from mmesh.evaluation.rejections import BROKEN, NO_PICTURE, TWICE, Rejections
from mmesh.evaluation.survey import hash_of
from mmesh.values.paths import why_not_read

POOLS = "pools"
"""Attribute with the local pools of a candidate."""


def content_of(row: PoolRow | Query) -> Content:
    """Return the content of a row: its picture, then its text.

    Raises:
        OSError: the picture cannot be read.
    """
    parts: list[Part] = [] if row.image is None else [Image(_bytes_of(row.image))]
    return Content((*parts, row.text) if row.text else tuple(parts))


def _bytes_of(path: Path) -> bytes:
    if why_not_read(path):  # reading it may never end
        raise OSError(errno.EINVAL, "is no file", str(path))
    try:
        return path.read_bytes()
    except ValueError as error:  # it holds NUL or half of a surrogate pair, as no file name does
        raise OSError(errno.EINVAL, str(error), str(path)) from None


def has_content(row: PoolRow) -> bool:
    """Tell whether `content_of` gives something."""
    try:
        content_of(row)
    except OSError:
        return False
    return True


def candidates_of(
    rows: Sequence[PoolRow | Broken], seen: set[int], twice: frozenset[int], refused: Rejections
) -> Iterator[Candidate]:
    """Yield the candidates of rows; what gives none is counted in `refused`.

    `twice` has the hashes of ids that come more than once, and `seen` those of them that came; a
    row whose picture is missing does not stand in the way of another one.
    """
    for row in rows:
        if isinstance(row, Broken):
            refused.add(row.where, BROKEN, row.reason)
            continue
        key = hash_of(row.id) if twice else 0
        if key in seen:
            refused.add(row.where, TWICE, f"{row.id!r} came before")
            continue
        try:
            content = content_of(row)
        except OSError as error:
            refused.add(row.where, NO_PICTURE, f"{row.image}: {error.strerror or error}")
            continue
        if key in twice:
            seen.add(key)
        attributes: dict[str, AttributeValue] = dict(row.attributes)
        yield Candidate(row.id, content, attributes | {POOLS: row.pools})
