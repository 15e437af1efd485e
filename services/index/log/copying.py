"""Copies of collections in the log: what one held at one moment, as another that is read-only.

Only the log can tell that moment: shards and replicas are each at another write, and as the log
keeps the newest row of a candidate alone, none of them can go back. So the rows are read in one
transaction, which sees one state however long it takes, and written in many short ones, between
which others write. Until it is complete the copy is known as a deleted collection: nobody sees it,
and whatever is left of one that was not completed is purged. A lease, an entry among the answers to
requests that is renewed with every page, keeps it from that while it is worked on. A purge takes
the lease before the first row, so that who has the lease has all rows, however many there are.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from mmesh.collections import CollectionSettings
from mmesh.errors import MmeshError, Unavailable
from services.index.log import catalog, commits
from services.index.log.attributes import Counts
from services.index.log.databases.database import Database
from services.index.log.rows import CollectionRow
from services.index.log.tables import (
    attributes,
    candidates,
    collections,
    dropped,
    requests,
)
from services.index.point import BEGINNING

SOME = 1000
"""Rows that one transaction writes at most: other writers wait for it."""
SOME_BYTES = 8 << 20
"""Their bytes, in memory and for others to wait for; a row that has more goes by itself."""
LEASE_S = 600
"""Seconds after which rows that nobody adds to are taken for left over, and never become a copy."""
EXACT = "Flat"
"""The kind of segments that find the same in every process."""

_ROWS = (
    sa.select(*candidates.c)
    .where(
        candidates.c.key == sa.bindparam("of_key"),
        candidates.c.id > sa.bindparam("after"),
        candidates.c.id <= sa.bindparam("last"),
        candidates.c.deleted_s.is_(None),
    )
    .order_by(candidates.c.id)
    .execution_options(binary=True)
)
_LEASE = "copying"
_OF_KEY = requests.c.key == sa.bindparam("of_key"), requests.c.request_id == _LEASE
_IN_TIME = requests.c.time_s >= sa.bindparam("since_s")
_RENEW, _END = requests.update().where(*_OF_KEY, _IN_TIME), requests.delete().where(*_OF_KEY)
_PUBLISHED = dropped.delete().where(dropped.c.key == sa.bindparam("of_key"))


@dataclass(frozen=True, slots=True)
class Copied:
    """Rows that belong to no collection yet."""

    key: int
    source: CollectionRow
    """As it was at the moment that they are of."""
    attributes: Counts


@contextmanager
def copied(
    database: Database, uses: catalog.UsesTable, source: str, check: Callable[[], None]
) -> Iterator[Copied]:
    """Copy the rows of a collection as they are now; `check` ends the work by an exception.

    Unless they are published in it, a block that raises leaves them to the next purge.

    Raises:
        CollectionNotFound: there is no such collection.
        Unavailable: the unfinished copy was purged.
    """
    with database.statement() as connection:
        row = catalog.must_find(connection, source)
    key = _new_key(database, row)  # before the moment: see `purge.pictures`
    try:
        with database.snapshot() as reading:
            row = catalog.must_find(reading, source)
            counts = uses.read_all(reading, row.key)
            _copy(database, reading, row.key, key, check)
        check()
        yield Copied(key, row, counts)
    except BaseException:
        with suppress(MmeshError), database.write() as connection:  # else the lease runs out
            give_up(connection, key)
        raise


def _copy(
    database: Database, reading: sa.Connection, source: int, key: int, check: Callable[[], None]
) -> None:
    """Copy rows from one key to another."""
    sizes, after = _sizes(database), ""
    while last := _last_of_page(reading, sizes, source, after):
        check()
        page = {"of_key": source, "after": after, "last": last}
        _put(database, key, reading.execute(_ROWS, page).all())
        after = last


def _sizes(database: Database) -> sa.Select[Any]:
    """Select ids and the bytes of their rows; of deletions too, so that a page is never far."""
    columns = candidates.c
    some = (columns.parts, columns.attributes, columns.vector)
    return (
        sa.select(columns.id, sum(map(database.octets, some), sa.literal(0)))
        .where(columns.key == sa.bindparam("of_key"), columns.id > sa.bindparam("after"))
        .order_by(columns.id)
        .limit(sa.bindparam("some"))
    )


def _last_of_page(
    reading: sa.Connection, sizes: sa.Select[Any], key: int, after: str
) -> str | None:
    """Return the last id of the next page of rows; None where there are no more."""
    last, room = None, SOME_BYTES
    values = {"of_key": key, "after": after, "some": SOME}
    with reading.execute(sizes, values) as found:  # SQLite reads no further than it is asked to
        for candidate_id, size in found:
            room -= size
            if last is not None and room < 0:
                break
            last = candidate_id
    return last


def _new_key(database: Database, row: CollectionRow) -> int:
    """Return a key that no collection has, for rows that go unless they become one."""
    with database.write() as connection:
        epoch = uuid.uuid4().hex
        values = _values(row, f",{epoch}", epoch)  # no collection has a comma in its name
        made = connection.execute(collections.insert().values(values)).inserted_primary_key
        assert made is not None
        key = int(made[0])
        connection.execute(collections.delete().where(collections.c.key == key))
        connection.execute(dropped.insert().values(key=key))
        lease = {"key": key, "request_id": _LEASE, "count": 0, "token": "", "time_s": _now_s()}
        connection.execute(requests.insert().values(lease))
    return key


def _put(database: Database, key: int, rows: Sequence[Any]) -> None:
    with database.write() as connection:
        _renew(connection, key)
        if rows:
            database.put(connection, [(key, *row[1:]) for row in rows], {key: []})


def _renew(connection: sa.Connection, key: int) -> None:
    now_s = _now_s()
    renewing = _RENEW.values(time_s=now_s)
    if not connection.execute(renewing, {"of_key": key, "since_s": now_s - LEASE_S}).rowcount:
        raise _purged()


def give_up(connection: sa.Connection, key: int) -> None:
    """Take the lease of rows, which leaves them to the next purge."""
    connection.execute(_END, {"of_key": key})


def is_worked_on(clocks_s: float = 0) -> sa.ColumnElement[bool]:
    """Return a condition on rows of `dropped`: they are of a copy that is not complete yet.

    Where that must not be missed, `clocks_s` are the seconds by which clocks may differ.
    """
    lease = sa.select(requests.c.key).where(
        requests.c.key == dropped.c.key,
        requests.c.request_id == _LEASE,
        requests.c.time_s >= _now_s() - LEASE_S - clocks_s,
    )
    return lease.exists()


def publish(connection: sa.Connection, copied: Copied, name: str) -> CollectionRow:
    """Return the collection, read-only, that the rows are from now on.

    Raises:
        CollectionExists: the name was taken meanwhile.
        Unavailable: some of the rows were purged.
    """
    key, source = copied.key, copied.source
    catalog.check_free(connection, name)
    ours = connection.execute(_PUBLISHED, {"of_key": key}).rowcount  # locked first, as by a purge
    if not ours:
        raise _purged()
    _renew(connection, key)
    give_up(connection, key)
    values = {"key": key} | _values(source, name, uuid.uuid4().hex[:12])
    connection.execute(collections.insert().values(values))
    if copied.attributes:
        uses = [
            {"key": key, "name": attribute, "type": kind, "count": count}
            for (attribute, kind), count in copied.attributes.items()
        ]
        connection.execute(attributes.insert(), uses)
    if source.stamp:
        commits.record(connection, key, BEGINNING, source.head)
    return catalog.must_find(connection, name)


def _values(source: CollectionRow, name: str, epoch: str) -> dict[str, Any]:
    """Return the columns of a copy: number and stamp of its newest write are the source's."""
    return {
        "name": name,
        "epoch": epoch,
        "seq": source.seq,
        "stamp": source.stamp,
        "purged": 0,
        "dim": source.dim,
        "model_fingerprint": source.model_fingerprint,
        "attribute_types": json.dumps(dict(source.attribute_types)),
        "settings": catalog.settings_to_json(_settings(source.settings)),
        "create_time": datetime.now(UTC),
    } | {f"{modality.value}_count": count for modality, count in source.counts.items()}


def _settings(settings: CollectionSettings) -> CollectionSettings:
    return replace(settings, index_factory=EXACT, mirror="", read_only=True)


def _now_s() -> int:
    return int(time.time())


def _purged() -> Unavailable:
    return Unavailable("the unfinished copy was purged; make it again")
