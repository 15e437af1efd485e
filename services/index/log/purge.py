"""What the log forgets: old deletions, old answers, and the rows of deleted collections."""

from __future__ import annotations

import time

import sqlalchemy as sa

from services.index.log import catalog
from services.index.log.database import Database
from services.index.log.tables import candidates, collections, dropped, requests

REMEMBERED_S = 2 * 86400
"""Seconds for which the answer to a request id is kept, at least."""
SOME = 5000
"""Rows that one transaction removes: writers wait for it."""


def purge(database: Database, horizon_s: float) -> int:
    """Forget what is old; return how many deletions, of those older than `horizon_s` seconds."""
    until_s = int(time.time() - horizon_s)
    with database.statement() as connection:
        keys = connection.scalars(sa.select(collections.c.key)).all()
    count = 0
    for key in keys:
        while gone := _forget_deletions(database, key, until_s):
            count += gone
    while _forget_answers(database, int(time.time()) - REMEMBERED_S):
        pass
    while _remove_rows(database):
        pass
    return count


def _forget_deletions(database: Database, key: int, until_s: int) -> int:
    """Remove some tombstones and say so in the collection, in one transaction."""
    columns = candidates.c
    lock = sa.select(collections.c.purged).where(collections.c.key == key).with_for_update()
    old = sa.select(columns.id, columns.seq).where(columns.key == key, columns.deleted_s <= until_s)
    gone = candidates.delete().where(
        columns.key == sa.bindparam("of_key"), database.is_one_of(columns.id, "ids")
    )
    with database.write() as connection:
        purged = connection.scalar(lock)
        found = connection.execute(old.limit(SOME)).all() if purged is not None else []
        if found:
            connection.execute(gone, {"of_key": key, "ids": database.many([i for i, _ in found])})
            catalog.update(connection, key, purged=max(purged or 0, *(seq for _, seq in found)))
    return len(found)


def _forget_answers(database: Database, until_s: int) -> int:
    names = sa.tuple_(requests.c.key, requests.c.request_id)
    old = sa.select(requests.c.key, requests.c.request_id).where(requests.c.time_s <= until_s)
    with database.write() as connection:
        gone = requests.delete().where(names.in_(old.limit(SOME)))
        return connection.execute(gone).rowcount


def _remove_rows(database: Database) -> bool:
    """Remove some rows of a deleted collection; return whether there may be more."""
    with database.write() as connection:
        key = connection.scalar(sa.select(dropped.c.key).limit(1).with_for_update())
        if key is None:
            return False
        for table, column in ((candidates, candidates.c.id), (requests, requests.c.request_id)):
            some = sa.select(column).where(table.c.key == key).limit(SOME)
            gone = table.delete().where(table.c.key == key, column.in_(some))
            if connection.execute(gone).rowcount:
                return True
        connection.execute(dropped.delete().where(dropped.c.key == key))
        return True
