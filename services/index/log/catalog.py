"""Collections, their aliases and attributes in the log's tables; all works inside a transaction."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Any, NamedTuple

import sqlalchemy as sa
from cachetools import LRUCache

from mmesh.collections import CollectionLimits, CollectionSettings
from mmesh.errors import (
    AliasNotFound,
    CollectionExists,
    CollectionNotFound,
    FailedPrecondition,
    InvalidField,
)
from services.index.log.attributes import Counts, Uses, types_in
from services.index.log.databases.database import Database
from services.index.log.rows import CollectionRow
from services.index.log.tables import MODALITIES, aliases, attributes, collections, dropped

_alias_list = (
    sa.select(sa.func.aggregate_strings(aliases.c.alias, ","))
    .where(aliases.c.key == collections.c.key)
    .scalar_subquery()
)
ROWS = sa.select(*collections.c, _alias_list)
"""Selects what `row_of` takes."""
_BY_NAME = ROWS.where(
    sa.or_(
        collections.c.name == sa.bindparam("name"),
        collections.c.key.in_(
            sa.select(aliases.c.key).where(aliases.c.alias == sa.bindparam("name"))
        ),
    )
)


class Dropped(NamedTuple):
    """A collection that is gone."""

    epoch: str
    candidates: int
    """How many went with it."""


_RESERVED = ",\0"
"""Characters that no name has: one of them separates aliases, the other PostgreSQL refuses."""


_parsed: LRUCache[int, tuple[tuple[Any, ...], CollectionRow]] = LRUCache(4096)
"""The latest row of a collection, by its key: each write makes another, and the last is no more."""
_parsed_lock = Lock()


def _parse(values: tuple[Any, ...]) -> CollectionRow:
    by_name = dict(zip((*(c.name for c in collections.c), "aliases"), values, strict=True))
    counts = {m: by_name.pop(f"{m.value}_count") for m in MODALITIES}
    created: datetime = by_name.pop("create_time")
    return CollectionRow(
        **by_name
        | {
            "attribute_types": json.loads(by_name["attribute_types"]),
            "settings": settings_from_json(by_name["settings"]),
            "aliases": tuple(sorted(filter(None, (by_name["aliases"] or "").split(",")))),
        },
        counts=counts,
        create_time=created.replace(tzinfo=UTC) if created.tzinfo is None else created,
    )


def row_of(row: Sequence[Any]) -> CollectionRow:
    """Return a row of `ROWS` as the index knows it; one that has not changed is not parsed anew."""
    values = tuple(row)
    key: int = values[0]
    with _parsed_lock:
        known = _parsed.get(key)
    if known is not None and known[0] == values:
        return known[1]
    parsed = _parse(values)
    with _parsed_lock:
        _parsed[key] = values, parsed
    return parsed


def settings_to_json(settings: CollectionSettings) -> str:
    """Return settings as JSON."""
    return json.dumps(dataclasses.asdict(settings))


def settings_from_json(text: str) -> CollectionSettings:
    """Return the settings of `settings_to_json`; what this release does not know is left out."""
    values = json.loads(text)
    limits = _known(CollectionLimits, values.pop("limits", {}))
    return CollectionSettings(
        **_known(CollectionSettings, values), limits=CollectionLimits(**limits)
    )


def _known(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(cls)}
    return {name: value for name, value in values.items() if name in names}


def find(connection: sa.Connection, name: str) -> CollectionRow | None:
    """Return the collection of a name or an alias."""
    if not is_name(name):
        return None
    row = connection.execute(_BY_NAME, {"name": name}).one_or_none()
    return row_of(row) if row else None


def is_name(text: str) -> bool:
    """Return False for what no collection can be called."""
    return not any(character in text for character in _RESERVED)


def mirrored_by(connection: sa.Connection, name: str) -> list[CollectionRow]:
    """Return the collections of which `name` is the mirror."""
    rows = [row_of(row) for row in connection.execute(ROWS)]
    return [row for row in rows if row.settings.mirror == name]


def check_mirror(connection: sa.Connection, name: str, mirror: str, wanted: str) -> None:
    """Raise unless collection `name`, which has `mirror`, may have the mirror `wanted`."""
    if wanted in ("", mirror):
        return
    if mirror:
        message = f"collection {name!r} has the mirror {mirror!r}; clear it first"
        raise FailedPrecondition(message, {"collection": name})
    if wanted == name or must_find(connection, wanted).name != wanted:
        raise InvalidField("settings.mirror", f"is {wanted!r}; name another collection, no alias")


def check_name(field: str, text: str) -> None:
    """Raise `InvalidField` for what no collection can be called."""
    if not is_name(text):
        raise InvalidField(field, "holds a comma or a NUL character; remove it")


def must_find(connection: sa.Connection, name: str) -> CollectionRow:
    """Return the collection of a name or an alias, or raise `CollectionNotFound`."""
    row = find(connection, name)
    if row is None:
        raise CollectionNotFound(name)
    return row


def must_find_again(connection: sa.Connection, name: str, epoch: str) -> CollectionRow:
    """Return the collection of an epoch, of which a request by this name was answered before.

    Raises:
        CollectionNotFound: it was deleted since, whatever has the name now.
    """
    row = connection.execute(ROWS.where(collections.c.epoch == epoch)).one_or_none()
    if row is None:
        raise CollectionNotFound(name)
    return row_of(row)


def create(
    connection: sa.Connection,
    name: str,
    dim: int,
    model_fingerprint: str,
    settings: CollectionSettings,
) -> CollectionRow:
    """Insert a collection, or return the one that has this name, dim and model already."""
    row = find(connection, name)
    if row is None:
        check_mirror(connection, name, "", settings.mirror)
        now = datetime.now(UTC)
        if settings.mirror:  # a migration tells the old one by its age, whatever the clock says
            other = must_find(connection, settings.mirror)
            now = max(now, other.create_time + timedelta(microseconds=1))
        connection.execute(
            collections.insert().values(
                name=name,
                epoch=uuid.uuid4().hex[:12],
                seq=0,
                purged=0,
                dim=dim,
                model_fingerprint=model_fingerprint,
                attribute_types="{}",
                settings=settings_to_json(settings),
                **{f"{m.value}_count": 0 for m in MODALITIES},
                create_time=now,
            )
        )
        return must_find(connection, name)
    if row.name != name:
        problem = f"{name!r} is an alias of collection {row.name!r}; choose another name"
        raise CollectionExists(problem, {"collection": name})
    if (row.dim, row.model_fingerprint) != (dim, model_fingerprint):
        raise CollectionExists(
            f"collection {name!r} exists for model {row.model_fingerprint!r} of dim {row.dim}",
            {"collection": name},
        )
    return row


def check_free(connection: sa.Connection, name: str) -> None:
    """Raise `CollectionExists` when a collection or an alias has this name."""
    if find(connection, name) is not None:
        raise CollectionExists(f"{name!r} exists; choose another name", {"collection": name})


def update(connection: sa.Connection, key: int, **values: Any) -> None:
    """Set columns of a collection."""
    connection.execute(collections.update().where(collections.c.key == key).values(**values))


def set_settings(connection: sa.Connection, key: int, settings: CollectionSettings) -> None:
    """Set all settings of a collection."""
    update(connection, key, settings=settings_to_json(settings))


def drop(connection: sa.Connection, name: str) -> Dropped:
    """Delete a collection and its aliases; leave its rows to `Log.purge`."""
    row = must_find(connection, name)
    if row.name != name:
        raise CollectionNotFound(name)
    connection.execute(aliases.delete().where(aliases.c.key == row.key))
    connection.execute(collections.delete().where(collections.c.key == row.key))
    connection.execute(dropped.insert().values(key=row.key))
    return Dropped(row.epoch, sum(row.counts.values()))


def set_alias(connection: sa.Connection, alias: str, collection: str) -> str:
    """Let an alias name a collection; return the name of the one before, or an empty string."""
    row = must_find(connection, collection)
    if row.name != collection:
        raise CollectionNotFound(collection)
    before = find(connection, alias)
    if before is not None and before.name == alias:
        problem = f"{alias!r} is the name of a collection; choose another alias"
        raise CollectionExists(problem, {"collection": alias})
    connection.execute(aliases.delete().where(aliases.c.alias == alias))
    connection.execute(aliases.insert().values(alias=alias, key=row.key))
    return before.name if before else ""


def delete_alias(connection: sa.Connection, alias: str) -> None:
    """Delete an alias, or raise `AliasNotFound`."""
    found = (
        is_name(alias)
        and connection.execute(aliases.delete().where(aliases.c.alias == alias)).rowcount
    )
    if not found:
        shown = alias[:80]
        raise AliasNotFound(f"no alias is named {shown!r}; see the aliases of the collections")


class UsesTable:
    """Reads and writes the uses of attributes, inside transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        columns = attributes.c
        self._all = sa.select(columns.name, columns.type, columns.count).where(
            columns.key == sa.bindparam("key")
        )
        self._some = self._all.where(database.is_one_of(columns.name, "names"))

    def read_all(self, connection: sa.Connection, key: int) -> Counts:
        """Return the counts of all attributes of a collection."""
        found = connection.execute(self._all.order_by(attributes.c.name), {"key": key})
        return {(name, kind): count for name, kind, count in found}

    def read(self, connection: sa.Connection, key: int, rows: Iterable[str]) -> Uses:
        """Return the uses of the attributes that these rows of candidates have."""
        types = {row: types_in(row) for row in rows if row}
        names = list(dict.fromkeys(name for found in types.values() for name in found))
        if not names:
            return Uses({}, {})
        values = {"key": key, "names": self._database.many(names)}
        found = connection.execute(self._some, values)
        return Uses({(name, kind): count for name, kind, count in found}, types)

    def save(self, connection: sa.Connection, key: int, uses: Uses) -> None:
        """Write the counts that have changed; the collection is locked."""
        counts = uses.changed
        if not counts:
            return
        named = [{"of_name": name, "of_type": kind} for name, kind in counts]
        connection.execute(_GONE.where(attributes.c.key == key), named)
        rows = [
            {"key": key, "name": name, "type": kind, "count": count}
            for (name, kind), count in counts.items()
            if count
        ]
        if rows:
            connection.execute(attributes.insert(), rows)


_GONE = attributes.delete().where(
    attributes.c.name == sa.bindparam("of_name"), attributes.c.type == sa.bindparam("of_type")
)
