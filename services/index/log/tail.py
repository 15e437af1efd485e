"""The end of a collection's log, as columns: what a view has yet to apply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from mmesh.errors import DataLoss
from mmesh.vectors import FloatMatrix
from services.index.log.commits import stamp_at
from services.index.log.rows import Rows
from services.index.log.tables import MODALITIES, candidates, collections

_HEAD = sa.select(collections.c.key, collections.c.seq, collections.c.purged, stamp_at).where(
    collections.c.name == sa.bindparam("name"), collections.c.epoch == sa.bindparam("epoch")
)
_columns_of_tail = (
    candidates.c.id,
    candidates.c.modality,
    candidates.c.attributes,
    candidates.c.seq,
    candidates.c.deleted_s,
    candidates.c.vector,
)
_TAIL = (
    sa.select(*_columns_of_tail)
    .where(
        candidates.c.key == sa.bindparam("key"),
        candidates.c.seq > sa.bindparam("seq"),
        candidates.c.slot.between(sa.bindparam("first"), sa.bindparam("last")),
    )
    .order_by(candidates.c.seq)
    .limit(sa.bindparam("limit"))
    .execution_options(binary=True)
)


class Head(NamedTuple):
    """How far a collection's log goes."""

    key: int
    seq: int
    purged: int
    stamp_at: str | None
    """Stamp of the commit that made the write which was asked for; None without such a write."""


def head(connection: sa.Connection, name: str, epoch: str, at_seq: int) -> Head | None:
    """Return the head of a collection, None when it is gone or another of the same name."""
    wanted = {"name": name, "epoch": epoch, "at_seq": at_seq}
    found = connection.execute(_HEAD, wanted).one_or_none()
    return Head(*found) if found else None


def read(connection: sa.Connection, key: int, seq: int, slots: range, limit: int, dim: int) -> Rows:
    """Return up to `limit` rows of `slots` that were written after `seq`, in order.

    Raises:
        DataLoss: the vectors are not of this dim, or rows are no rows.
    """
    wanted = {"seq": seq, "first": slots.start, "last": slots.stop - 1, "limit": limit}
    result = connection.execute(_TAIL, {"key": key} | wanted)
    found = result.cursor.fetchall()  # plain tuples: a Row for each would double the time
    result.close()
    try:
        return _columns(found, dim)
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise DataLoss("rows of the log are damaged; restore a copy of it") from error


def _columns(found: Sequence[tuple[Any, ...]], dim: int) -> Rows:
    if not found:
        empty: FloatMatrix = np.zeros((0, dim), np.float32)
        return Rows((), (), (), np.zeros(0, np.int64), np.zeros(0, np.bool_), empty)
    ids, modalities, attributes, seqs, deleted, vectors = zip(*found, strict=True)
    zeros = bytes(4 * dim)
    packed = b"".join([vector or zeros for vector in vectors])
    if len(packed) != len(found) * len(zeros):
        raise DataLoss(f"the log has vectors that are not of dim {dim}; restore a copy of it")
    return Rows(
        ids,
        [MODALITIES[number] for number in modalities],
        attributes,
        np.array(seqs, np.int64),
        np.array([gone is not None for gone in deleted], np.bool_),
        np.frombuffer(packed, "<f4").reshape(-1, dim),
    )
