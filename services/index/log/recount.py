"""Counts the uses of attributes anew: releases before version 0004 write without counting them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import sqlalchemy as sa

from services.index.log.attributes import Counts, Types, type_of_uses, types_in
from services.index.log.databases.database import Database
from services.index.log.tables import attributes, candidates, collections

_SOME = 10_000
_the_key = sa.bindparam("of_key", type_=sa.Integer)
_HEAD = (
    sa.select(collections.c.attribute_types)
    .where(collections.c.key == _the_key)
    .with_for_update(of=collections)
)
_ROWS = sa.select(candidates.c.attributes).where(
    candidates.c.key == _the_key, candidates.c.deleted_s.is_(None), candidates.c.attributes != ""
)
_STORED = sa.select(attributes.c.name, attributes.c.type, attributes.c.count).where(
    attributes.c.key == _the_key
)
_FORGET = attributes.delete().where(attributes.c.key == _the_key)
_SETTLE = collections.update().where(collections.c.key == _the_key)


def recount(database: Database) -> list[str]:
    """Return the names of the collections whose counts were wrong; now they are right.

    Writes to a collection wait while it is counted.
    """
    with database.snapshot() as connection:
        named = connection.execute(sa.select(collections.c.key, collections.c.name)).all()
    return [name for key, name in named if _recount(database, key)]


def _recount(database: Database, key: int) -> bool:
    with database.migration() as connection:  # it may take long
        settled = connection.scalar(_HEAD, {"of_key": key})
        if settled is None:  # it was deleted meanwhile
            return False
        stored = {(name, kind): n for name, kind, n in connection.execute(_STORED, {"of_key": key})}
        counts = _counted(connection, key)
        types = _types_of(counts)
        if (counts, types) == (stored, json.loads(settled)):
            return False
        connection.execute(_FORGET, {"of_key": key})
        rows = [
            {"key": key, "name": name, "type": kind, "count": count}
            for (name, kind), count in counts.items()
        ]
        if rows:
            connection.execute(attributes.insert(), rows)
        values = {"of_key": key, "attribute_types": json.dumps(dict(types))}
        connection.execute(_SETTLE, values)
        return True


def _counted(connection: sa.Connection, key: int) -> Counts:
    counts: Counter[tuple[str, str]] = Counter()
    query = _ROWS.execution_options(yield_per=_SOME)
    for (row,) in connection.execute(query, {"of_key": key}):
        counts.update(types_in(row).items())
    return counts


def _types_of(counts: Counts) -> Types:
    kinds: dict[str, set[str]] = defaultdict(set)
    for name, kind in counts:
        kinds[name].add(kind)
    return {name: type_of_uses(found) for name, found in kinds.items()}
