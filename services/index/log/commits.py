"""What tells one history of a collection from another: a random stamp for each commit.

A sequence number says how many writes there were, not which. A log that lost its tail (restored to
an earlier moment, failed over to a standby that was behind, replaced by an older copy) counts the
same numbers again for other writes, and no code of ours runs at that moment. So each commit leaves
a random stamp beside its number: a state of the log that has the stamp has that commit, and since
logs are only ever cut at the end, all that came before it. See docs/adr/0025.

Every function works inside a transaction of its caller.
"""

from __future__ import annotations

import secrets

import sqlalchemy as sa

from services.index.log.rows import CollectionRow
from services.index.log.tables import collections, commits
from services.index.point import Point

REMEMBERED = 1_000_000
"""Commits of each collection whose stamps are kept: some 30 MB. Whoever reflects less than the
oldest of them begins anew, which then is no more work than catching up."""
_NEWEST = 4096
"""Commits that a reader of the log is told of at most."""

_columns = commits.c
_of_key = _columns.key == sa.bindparam("key")
_FORGET_LOST = commits.delete().where(
    _columns.key == sa.bindparam("of_key"), _columns.seq > sa.bindparam("head")
)
_before = sa.bindparam("before", type_=sa.BigInteger)
_the_key = sa.bindparam("of_key", type_=sa.Integer)
_known = sa.select(_columns.seq).where(_columns.key == _the_key, _columns.seq == _before)
_before_it = sa.select(_the_key, _before, sa.bindparam("before_stamp", type_=sa.Text)).where(
    _before > 0, ~_known.exists()
)
_itself = sa.select(
    _the_key,
    sa.bindparam("new_seq", type_=sa.BigInteger),
    sa.bindparam("new_stamp", type_=sa.Text),
)
_RECORD = commits.insert().from_select(["key", "seq", "stamp"], sa.union_all(_before_it, _itself))
_COVERING = (
    sa.select(_columns.stamp)
    .where(
        _columns.key == collections.c.key,
        _columns.seq >= sa.bindparam("at_seq"),
        _columns.seq <= collections.c.seq,
    )
    .order_by(_columns.seq)
    .limit(1)
    .scalar_subquery()
)
stamp_at = sa.case(
    (collections.c.seq < sa.bindparam("at_seq"), sa.null()),
    else_=sa.func.coalesce(_COVERING, collections.c.stamp),
)
"""The stamp of the commit that made write `at_seq` of a collection; null where the log has no such
write. For statements that select from `collections`."""
_HOLDS = sa.select(collections.c.seq, stamp_at).where(
    collections.c.key == sa.bindparam("key"), collections.c.epoch == sa.bindparam("epoch")
)
_end = (
    sa.select(sa.func.min(_columns.seq))
    .where(_of_key, _columns.seq >= sa.bindparam("through"))
    .scalar_subquery()
)
_BETWEEN = (
    sa.select(_columns.seq, _columns.stamp)
    .where(_of_key, _columns.seq > sa.bindparam("after"), _columns.seq <= _end)
    .order_by(_columns.seq.desc())
    .limit(_NEWEST)
)
_OLDEST_REMEMBERED = sa.select(_columns.seq).where(_of_key).order_by(_columns.seq.desc()).limit(1)
_FORGET_OLD = commits.delete().where(
    _columns.key == sa.bindparam("of_key"), _columns.seq < sa.bindparam("oldest")
)


def new_stamp() -> str:
    """Return the stamp of one commit: 48 random bits, as text."""
    return secrets.token_hex(6)


def record(connection: sa.Connection, key: int, before: Point, point: Point) -> None:
    """Note a commit to a collection whose head was `before`.

    Stamps of later commits, which a tool may have left when it put rows back, go. A head that has
    none is of a release that knows no stamps and writes to this log too; it gets that of the commit
    before, which such writes leave in the collection's row.
    """
    connection.execute(_FORGET_LOST, {"of_key": key, "head": before.seq})
    values = {"of_key": key, "new_seq": point.seq, "new_stamp": point.stamp}
    connection.execute(_RECORD, values | {"before": before.seq, "before_stamp": before.stamp})


def between(connection: sa.Connection, key: int, after: int, through: int) -> tuple[Point, ...]:
    """Return the newest commits after `after`, up to that which made write `through`, in order."""
    found = connection.execute(_BETWEEN, {"key": key, "after": after, "through": through})
    return tuple(Point(seq, stamp) for seq, stamp in reversed(found.all()))


def holds(connection: sa.Connection, row: CollectionRow, point: Point) -> bool | None:
    """Tell whether a collection's log has a write; None where that cannot be told any more.

    That is so for writes so old that their stamps are forgotten, and for points without a stamp,
    which earlier releases made.
    """
    values = {"key": row.key, "epoch": row.epoch, "at_seq": point.seq}
    found = connection.execute(_HOLDS, values).one_or_none()
    if found is None or found[0] < point.seq:
        return False
    if not point.seq:
        return True
    if not point.stamp:
        return None
    if found[1] == point.stamp:
        return True
    oldest = oldest_remembered(connection, row.key)
    return None if oldest is not None and point.seq < oldest else False


def oldest_remembered(
    connection: sa.Connection, key: int, remembered: int = REMEMBERED
) -> int | None:
    """Return the commit from which on stamps are kept; None while there are fewer."""
    query = _OLDEST_REMEMBERED.offset(remembered - 1)
    return connection.scalar(query, {"key": key})


def forget_before(connection: sa.Connection, key: int, oldest: int) -> None:
    """Remove the stamps of the commits before one."""
    connection.execute(_FORGET_OLD, {"of_key": key, "oldest": oldest})
