"""What the log forgets: old deletions, old answers, and the rows of deleted collections.

And what it remembers: the pictures that its rows name, for those who remove all others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import sqlalchemy as sa

from mmesh.content import Modality
from mmesh.errors import DataLoss, Unavailable
from services.index.log import catalog, commits, copying
from services.index.log.databases.database import Database
from services.index.log.rows import pictures_of
from services.index.log.tables import (
    NUMBERS,
    attributes,
    candidates,
    collections,
    dropped,
    requests,
)
from services.index.log.tables import commits as commit_table
from services.index.store.garbage import CLOCKS_S

REMEMBERED_S = 2 * 86400
"""Seconds for which the answer to a request id is kept, at least."""
SOME = 5000
"""Rows that one transaction removes: writers wait for it."""


def purge(database: Database, horizon_s: float) -> int:
    """Forget what is old; return how many deletions, of those older than `horizon_s` seconds.

    Raises:
        DataLoss: rows of a collection cannot be read; the others are purged.
    """
    until_s = int(time.time() - horizon_s)
    with database.statement() as connection:
        keys = connection.scalars(sa.select(collections.c.key)).all()
    count, damage = 0, None
    for key in keys:
        try:
            while gone := _forget_deletions(database, key, until_s):
                count += gone
            _forget_commits(database, key)
        except DataLoss as loss:  # of this collection; the others are purged all the same
            damage = loss
    while _forget_answers(database, int(time.time()) - REMEMBERED_S):
        pass
    while _remove_rows(database):
        pass
    if damage is not None:
        raise damage
    return count


def pictures(database: Database) -> Iterator[str]:
    """Yield the names of the pictures of all candidates there are, some more than once.

    Of rows that are written meanwhile, those of before or after. What a copy that is being made
    has yet to read may have been deleted since, and is nowhere to be found: then nobody can tell.

    Raises:
        Unavailable: a collection is being copied; try again when that is done.
    """
    known: set[int] = set()
    while new := _complete_keys(database) - known:  # the last may be those of copies made meanwhile
        for key in sorted(new):
            yield from _pictures_in(database, key)
        known |= new


def _complete_keys(database: Database) -> set[int]:
    """Return the keys of all collections at a moment at which none is being copied."""
    copies = sa.select(dropped.c.key).where(copying.is_worked_on(CLOCKS_S)).limit(1)
    with database.snapshot() as connection:
        if connection.scalar(copies) is not None:
            raise Unavailable("a collection is being copied; try again when that is done")
        return set(connection.scalars(sa.select(collections.c.key)))


def _pictures_in(database: Database, key: int) -> Iterator[str]:
    columns = candidates.c
    with_pictures = [NUMBERS[one] for one in Modality if one is not Modality.TEXT]
    query = (
        sa.select(columns.id, columns.parts)
        .where(
            columns.key == key,
            columns.id > sa.bindparam("after"),
            columns.deleted_s.is_(None),
            columns.modality.in_(with_pictures),
        )
        .order_by(columns.id)
        .limit(SOME)
    )
    after: str | None = ""
    while after is not None:
        with database.statement() as connection:
            found = connection.execute(query, {"after": after}).all()
        after = found[-1].id if len(found) == SOME else None
        for row in found:
            yield from pictures_of(row.parts)


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


def _forget_commits(database: Database, key: int) -> None:
    """Remove the stamps of commits that are too many."""
    with database.statement() as connection:
        oldest = commits.oldest_remembered(connection, key)
    if oldest is not None:
        with database.write() as connection:
            commits.forget_before(connection, key, oldest)


def _forget_answers(database: Database, until_s: int) -> int:
    names = sa.tuple_(requests.c.key, requests.c.request_id)
    old = sa.select(requests.c.key, requests.c.request_id).where(requests.c.time_s <= until_s)
    with database.write() as connection:
        gone = requests.delete().where(names.in_(old.limit(SOME)))
        return connection.execute(gone).rowcount


def _remove_rows(database: Database) -> bool:
    """Remove some rows of a deleted collection; return whether there may be more."""
    with database.write() as connection:
        due = sa.select(dropped.c.key).where(~copying.is_worked_on()).limit(1)
        key = connection.scalar(due.with_for_update())
        if key is None:
            return False
        copying.give_up(connection, key)
        for table, column in (
            (candidates, candidates.c.id),
            (requests, requests.c.request_id),
            (attributes, attributes.c.name),
            (commit_table, commit_table.c.seq),
        ):
            some = sa.select(column).where(table.c.key == key).limit(SOME)
            gone = table.delete().where(table.c.key == key, column.in_(some))
            if connection.execute(gone).rowcount:
                return True
        connection.execute(dropped.delete().where(dropped.c.key == key))
        return True
