"""The log: the newest row of each candidate, and one gap-free sequence a collection.

A write is one transaction: lock the collection's row, add n to its sequence, write n rows. So the
order of sequences is the order of commits: who has seen sequence s has seen all of 1..s.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from mmesh.collections import CollectionSettings, SettingsChange, with_changes
from mmesh.errors import CollectionNotFound, HistoryLost, InvalidField, MmeshError
from services.index.log import catalog, commits, copying, tail
from services.index.log.answers import Answer, check_request_id, check_same, digest_of
from services.index.log.attributes import Counts
from services.index.log.catalog import Dropped, UsesTable
from services.index.log.databases.engines import open_database
from services.index.log.databases.schema import ensure_schema
from services.index.log.ledger import (
    DeleteUnchanged,
    Ledger,
    RowState,
    Upsert,
    Write,
    Written,
    decide,
    ids_of,
)
from services.index.log.purge import pictures, purge
from services.index.log.requests import Once, Requests, find
from services.index.log.rows import CollectionRow, Page, Rows, StoredCandidate
from services.index.log.tables import aliases as alias_table
from services.index.log.tables import candidates, collections
from services.index.log.tables import identity as identity_table
from services.index.point import Point


class Log:
    """The system of record; safe for several threads and several processes.

    Args:
        url: `sqlite:///path` or `postgresql+psycopg://user:password@host:port/database`.

    Every method, and making a log, raises:
        LogUnavailable: the database cannot be used now; of the call nothing is certain to be there.
        StorageFull: the disk is full; nothing was written.
    """

    def __init__(self, url: str) -> None:
        self._database = open_database(url)
        try:
            ensure_schema(self._database)
        except BaseException:
            self.close()
            raise
        is_one_of = self._database.is_one_of
        named = is_one_of(collections.c.name, "names") | collections.c.key.in_(
            sa.select(alias_table.c.key).where(is_one_of(alias_table.c.alias, "names"))
        )
        # Rows are locked in the order of their keys, so that two processes cannot wait for each
        # other. On SQLite the transaction itself is the lock.
        self._lock_named = (
            catalog.ROWS.where(named).order_by(collections.c.key).with_for_update(of=collections)
        )
        columns, of_key = candidates.c, candidates.c.key == sa.bindparam("key")
        self._states = sa.select(
            columns.id, columns.modality, columns.seq, columns.deleted_s, columns.attributes
        ).where(of_key, is_one_of(columns.id, "ids"))
        self._uses = UsesTable(self._database)
        self._requests = Requests(self._database)
        self._living = of_key & columns.deleted_s.is_(None)
        self._by_ids = self._living & is_one_of(columns.id, "ids")

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    # -- collections

    def create_collection(
        self,
        name: str,
        dim: int,
        model_fingerprint: str,
        settings: CollectionSettings,
        request_id: str = "",
    ) -> CollectionRow:
        """Return the collection, made unless it exists with the same dim and model.

        Raises:
            CollectionExists: it exists with others, or an alias has its name.
            CollectionNotFound: the same request made it, and it was deleted since.
        """
        catalog.check_name("name", name)
        _check_text("model_fingerprint", model_fingerprint)
        content = (name, dim, model_fingerprint, catalog.settings_to_json(settings))
        with self._once(request_id, "create_collection", *content) as once:
            if once.answer is not None:
                return catalog.must_find_again(once.connection, name, once.answer.text)
            row = catalog.create(once.connection, name, dim, model_fingerprint, settings)
            once.remember(row.epoch)
            return row

    def update_collection(
        self, name: str, change: SettingsChange, request_id: str = ""
    ) -> CollectionRow:
        """Change some settings of a collection and return it.

        Raises:
            CollectionNotFound: there is none of this name or alias, or no such mirror.
            FailedPrecondition: it has another mirror.
        """
        with self._once(request_id, "update_collection", name, sorted(change.items())) as once:
            if once.answer is not None:
                return catalog.must_find_again(once.connection, name, once.answer.text)
            row = self._lock_one(once.connection, name)
            settings = with_changes(row.settings, change)
            catalog.check_mirror(once.connection, row.name, row.settings.mirror, settings.mirror)
            catalog.set_settings(once.connection, row.key, settings)
            once.remember(row.epoch)
            return catalog.must_find(once.connection, name)

    def copy_collection(
        self, source: str, name: str, request_id: str = "", check: Callable[[], None] = lambda: None
    ) -> CollectionRow:
        """Return a read-only copy of what a collection holds now, made unless this request did.

        `check` is called every now and then, at last before the copy appears, and ends the work
        by an exception.

        Raises:
            CollectionNotFound: there is no such source, or the copy was deleted since.
            CollectionExists: the name is taken.
            Unavailable: a purge took the rows of the unfinished copy; try again.
        """
        catalog.check_name("name", name)
        request = (request_id, "copy_collection", source, name)
        with self._once(*request) as once:
            if once.answer is not None:
                return catalog.must_find_again(once.connection, name, once.answer.text)
            catalog.check_free(once.connection, name)
        copying_rows = copying.copied(self._database, self._uses, source, check)
        with copying_rows as copied, self._once(*request) as once:
            if once.answer is not None:  # another process was quicker
                copying.give_up(once.connection, copied.key)
                return catalog.must_find_again(once.connection, name, once.answer.text)
            row = copying.publish(once.connection, copied, name)
            once.remember(row.epoch)
            return row

    def collection(self, name: str) -> CollectionRow:
        """Return the collection of a name or an alias.

        Raises:
            CollectionNotFound: there is none.
        """
        with self._database.statement() as connection:
            return catalog.must_find(connection, name)

    def attributes(self, key: int) -> Counts:
        """Return how many candidates of a collection have each attribute, by name and type."""
        with self._database.statement() as connection:
            return self._uses.read_all(connection, key)

    def collections(self, after: str = "", limit: int | None = None) -> list[CollectionRow]:
        """Return collections with names after `after`, by name."""
        _check_text("page_token", after)
        query = _COLLECTIONS
        if after or limit is not None:
            query = query.where(collections.c.name > after).limit(limit)
        with self._database.statement() as connection:
            return [catalog.row_of(row) for row in connection.execute(query)]

    def version(self) -> int | None:
        """Return a number that changes with every commit; None where that is not known at once.

        Never waits; for one thread only.
        """
        return self._database.version()

    def delete_collection(self, name: str, request_id: str = "") -> Dropped:
        """Delete the collection and return what went with it; not by alias.

        It is gone at once, and no mirror any more; `purge` removes its rows.

        Raises:
            CollectionNotFound: there is none.
        """
        with self._once(request_id, "delete_collection", name) as once:
            if once.answer is not None:
                return Dropped(once.answer.text, once.answer.count)
            mirrored = catalog.mirrored_by(once.connection, name)
            self._lock(once.connection, {name, *(row.name for row in mirrored)})
            for row in mirrored:
                catalog.set_settings(once.connection, row.key, replace(row.settings, mirror=""))
            gone = catalog.drop(once.connection, name)
            once.remember(gone.epoch, gone.candidates)
            return gone

    def set_alias(self, alias: str, collection: str, request_id: str = "") -> str:
        """Let an alias name a collection; return which it named before, or an empty string.

        Raises:
            CollectionNotFound: there is no such collection.
            CollectionExists: a collection has this name.
        """
        catalog.check_name("alias", alias)
        with self._once(request_id, "set_alias", alias, collection) as once:
            if once.answer is not None:
                return once.answer.text
            previous = catalog.set_alias(once.connection, alias, collection)
            once.remember(previous)
            return previous

    def delete_alias(self, alias: str, request_id: str = "") -> None:
        """Delete an alias.

        Raises:
            AliasNotFound: there is none.
        """
        with self._once(request_id, "delete_alias", alias) as once:
            if once.answer is None:
                catalog.delete_alias(once.connection, alias)
                once.remember("")

    @contextmanager
    def _once(self, request_id: str, kind: str, *content: object) -> Iterator[Once]:
        """Begin a transaction that nobody else changes names beside, for a request to do so.

        Raises:
            RequestIdReused: the request id was that of another request.
        """
        with self._database.write() as connection:
            self._database.lock_names(connection)
            yield Once(connection, request_id, digest_of(kind, *content))

    # -- writes

    def write(self, writes: Sequence[Write]) -> list[Written | MmeshError]:
        """Write for many callers in one transaction, in order; return what became of each.

        A write that is refused has its error in the answer and no effect on the data, and none on
        the other writes. What is written to a collection is written to its mirror too.
        """
        names = {write.collection for write in writes}
        while True:
            with self._database.write() as connection:
                rows = self._lock(connection, names)
                mirrors = {row.settings.mirror for row in rows.values()} - {""}
                if mirrors <= names:
                    ledgers = self._open_ledgers(connection, writes, rows)
                    lost = _lost(connection, writes, rows)
                    going = [write for n, write in enumerate(writes) if n not in lost]
                    outcomes = iter(decide(going, ledgers, int(time.time())))
                    self._save(connection, {ledger.row.key: ledger for ledger in ledgers.values()})
                    return [lost.get(n) or next(outcomes) for n in range(len(writes))]
            names |= mirrors  # all are locked at once, in order, or two writers wait for each other

    def answer(self, key: int, request_id: str, digest: str) -> Answer | None:
        """Return the answer to a request to write to the collection `key`; None if it is new.

        Raises:
            RequestIdReused: the request id was that of another request.
        """
        check_request_id(request_id)
        with self._database.statement() as connection:
            known = find(connection, key, request_id)
        if known is not None:
            check_same(request_id, known, digest)
        return known

    def _open_ledgers(
        self,
        connection: sa.Connection,
        writes: Sequence[Write],
        rows: Mapping[str, CollectionRow],
    ) -> dict[str, Ledger]:
        """Return the ledgers of collections, which are locked, by name and by alias."""
        mine: dict[int, list[Write]] = {row.key: [] for row in rows.values()}
        for write in writes:
            if row := rows.get(write.collection):
                mine[row.key].append(write)
                if mirror := rows.get(row.settings.mirror):
                    mine[mirror.key].append(write)
        by_key = {
            row.key: self._open_ledger(connection, row, mine[row.key]) for row in rows.values()
        }
        ledgers = {name: by_key[row.key] for name, row in rows.items()}
        for ledger in by_key.values():
            ledger.mirror = ledgers.get(ledger.row.settings.mirror)
        return ledgers

    def _open_ledger(
        self, connection: sa.Connection, row: CollectionRow, writes: Sequence[Write]
    ) -> Ledger:
        states = self._read_states(connection, row.key, writes)
        requests = self._requests.read(connection, row.key, (w.request_id for w in writes))
        new = (one.attributes for w in writes if isinstance(w, Upsert) for one in w.candidates)
        rows = {*new, *(state.attributes for state in states.values())}
        return Ledger(row, states, requests, self._uses.read(connection, row.key, rows))

    def _lock(self, connection: sa.Connection, names: set[str]) -> dict[str, CollectionRow]:
        """Lock collections, given by name or alias, and return those that there are."""
        known = self._database.many(sorted(filter(catalog.is_name, names)))
        found = connection.execute(self._lock_named, {"names": known})
        rows = [catalog.row_of(row) for row in found]
        return {name: row for row in rows for name in (row.name, *row.aliases) if name in names}

    def _lock_one(self, connection: sa.Connection, name: str) -> CollectionRow:
        rows = self._lock(connection, {name})
        if name not in rows:
            raise CollectionNotFound(name)
        return rows[name]

    def _read_states(
        self, connection: sa.Connection, key: int, writes: Sequence[Write]
    ) -> dict[str, RowState]:
        ids = [candidate_id for write in writes for candidate_id in ids_of(write)]
        values = {"key": key, "ids": self._database.many(ids)}
        found = connection.execute(self._states, values)
        return {i: RowState(number, seq, gone is None, row) for i, number, seq, gone, row in found}

    def _save(self, connection: sa.Connection, ledgers: dict[int, Ledger]) -> None:
        rows = [row for ledger in ledgers.values() for row in ledger.rows.values()]
        if rows:
            stored = {
                key: [i for i in ledger.rows if i in ledger.stored]
                for key, ledger in ledgers.items()
            }
            self._database.put(connection, rows, stored)
        for ledger in ledgers.values():
            if ledger.has_changed:
                self._save_collection(connection, ledger)
            self._uses.save(connection, ledger.row.key, ledger.uses)
        for key, ledger in ledgers.items():
            self._requests.save(connection, key, ledger.answers, ledger.remembered)

    def _save_collection(self, connection: sa.Connection, ledger: Ledger) -> None:
        values: dict[str, Any] = {f"{m.value}_count": n for m, n in ledger.counts.items()}
        if ledger.attribute_types != ledger.row.attribute_types:
            values["attribute_types"] = json.dumps(dict(ledger.attribute_types))
        catalog.update(
            connection, ledger.row.key, seq=ledger.seq, stamp=ledger.head.stamp, **values
        )
        if ledger.head != ledger.row.head:
            commits.record(connection, ledger.row.key, ledger.row.head, ledger.head)

    # -- reads

    def read_after(
        self,
        name: str,
        epoch: str,
        seq: int,
        slots: range,
        limit: int,
        dim: int,
        *,
        purged: int | None = None,
        stamp: str = "",
    ) -> tuple[Rows, int]:
        """Return rows of `slots` written after `seq`, in order, and how far that reaches.

        The second value is the sequence that a view reflects once it has applied the rows; after
        `limit` rows it lacks those candidates that were written again later. Both come from one
        snapshot: the head without the rows would tell a view that it reflects what it has never
        seen.

        `purged` is the collection's sequence when the view was begun from nothing (it misses no
        deletion up to there), 0 when it was begun from a snapshot; None leaves it to the caller to
        see that no deletion after `seq` was purged. `stamp` is that of the commit that made write
        `seq`, as far as the view knows: so the rows go on from the very writes that it reflects.

        Raises:
            HistoryLost: the log has no such write, or another one of this number.
            CollectionNotFound: the collection is gone, or is another of the same name, or a
                deletion that the view needs was purged: the view must begin anew.
            DataLoss: the vectors are not of this dim.
        """
        with self._database.snapshot() as connection:
            head = tail.head(connection, name, epoch, seq)
            if head is None or (purged is not None and head.purged > max(seq, purged)):
                raise CollectionNotFound(name)
            if stamp and head.stamp_at != stamp:
                raise HistoryLost(name)
            rows = tail.read(connection, head.key, seq, slots, limit, dim)
            through = int(rows.seqs[-1]) if len(rows) == limit else head.seq
            newest = commits.between(connection, head.key, seq, through) if through > seq else ()
        return replace(rows, commits=newest), through

    def holds(self, row: CollectionRow, point: Point) -> bool | None:
        """Tell whether the log has a write; None where that cannot be told any more.

        False says that it is of a history whose end the log has lost.
        """
        with self._database.snapshot() as connection:
            return commits.holds(connection, row, point)

    def get(self, name: str, ids: Sequence[str], *, vectors: bool = False) -> list[StoredCandidate]:
        """Return those of `ids` that exist, in any order.

        Raises:
            CollectionNotFound: there is no collection of this name or alias.
        """
        query = sa.select(*_stored_columns(vectors=vectors)).where(self._by_ids)
        query = query.execution_options(binary=vectors)
        return [StoredCandidate(*one) for one in self._of_ids(name, query, ids)]

    def sizes(self, name: str, ids: Sequence[str]) -> dict[str, int]:
        """Return how many bytes `get` would read of those of `ids` that exist.

        Raises:
            CollectionNotFound: there is no collection of this name or alias.
        """
        query = self._select_sizes(_stored_columns()).where(self._by_ids)
        return {candidate_id: size for candidate_id, size in self._of_ids(name, query, ids)}

    def _of_ids(self, name: str, query: sa.Select[Any], ids: Sequence[str]) -> Sequence[Any]:
        known = [candidate_id for candidate_id in ids if "\0" not in candidate_id]
        with self._database.snapshot() as connection:
            values = {"key": catalog.must_find(connection, name).key}
            return connection.execute(query, values | {"ids": self._database.many(known)}).all()

    def page(
        self,
        name: str,
        after: str,
        limit: int,
        most_bytes: int = sys.maxsize,
        *,
        parts: bool = True,
        vectors: bool = False,
    ) -> Page:
        """Return up to `limit` candidates with ids after `after`, by the bytes of their ids.

        They have up to `most_bytes` in the log, or it is one that has more: who asks for pages of
        long texts fills no memory.

        Raises:
            CollectionNotFound: there is no collection of this name or alias.
        """
        _check_text("page_token", after)
        columns, by_id = _stored_columns(parts=parts, vectors=vectors), candidates.c.id
        rest = self._living & (by_id > after)
        sizes = self._select_sizes(columns).where(rest).order_by(by_id).limit(limit + 1)
        with self._database.snapshot() as connection:
            key = {"key": catalog.must_find(connection, name).key}
            with connection.execute(sizes, key) as found:  # SQLite reads no further than is asked
                last, is_last = _fitting(found, limit, most_bytes)
            query = sa.select(*columns).where(rest, by_id <= last).order_by(by_id)
            rows = connection.execute(query.execution_options(binary=vectors), key)
            return Page([StoredCandidate(*one) for one in rows], is_last)

    def _select_sizes(self, columns: Sequence[sa.ColumnElement[Any]]) -> sa.Select[Any]:
        small = "id", "seq"
        sized = [one for one in columns if isinstance(one, sa.Column) and one.name not in small]
        return sa.select(columns[0], sum(map(self._database.octets, sized), sa.literal(0)))

    # -- upkeep

    def purge(self, horizon_s: float) -> int:
        """Forget deletions older than `horizon_s` seconds; return how many.

        Goes with them: old answers to request ids, and the rows of deleted collections. Several
        processes may purge at once, beside writers.
        """
        return purge(self._database, horizon_s)

    def identity(self) -> str:
        """Return what names this log: random, kept by copies and backups of it."""
        with self._database.snapshot() as connection:
            return str(connection.scalar(sa.select(identity_table.c.id)))

    def pictures(self) -> Iterator[str]:
        """Yield the names of the pictures of all candidates; see `purge.pictures`.

        Raises:
            Unavailable: a collection is being copied; try again when that is done.
        """
        return pictures(self._database)


def _lost(
    connection: sa.Connection, writes: Sequence[Write], rows: Mapping[str, CollectionRow]
) -> dict[int, MmeshError]:
    """Return the errors, by place, of writes that were planned on what the log has lost since."""
    planned = [(n, w) for n, w in enumerate(writes) if isinstance(w, DeleteUnchanged)]
    return {
        n: HistoryLost(write.collection)
        for n, write in planned
        if (row := rows.get(write.collection)) is not None
        and write.read_at is not None
        and commits.holds(connection, row, write.read_at) is False
    }


_COLLECTIONS = catalog.ROWS.order_by(collections.c.name)


def _stored_columns(
    *, parts: bool = True, vectors: bool = False
) -> Sequence[sa.ColumnElement[Any]]:
    """Return the columns of a `StoredCandidate` in their order."""
    columns = candidates.c
    read = columns.id, columns.parts if parts else sa.literal(""), columns.attributes, columns.seq
    return (*read, columns.vector) if vectors else read


def _fitting(sizes: Iterable[Any], limit: int, most_bytes: int) -> tuple[str, bool]:
    """Return the last of the first ids that fit, one at least, and whether that is all."""
    last, count = "", 0
    for candidate_id, size in sizes:
        most_bytes -= size
        if count == limit or (count and most_bytes < 0):
            return last, False
        last, count = candidate_id, count + 1
    return last, True


def _check_text(field: str, text: str) -> None:
    if "\0" in text:
        raise InvalidField(field, "holds a NUL character; remove it")
