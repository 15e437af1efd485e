"""The log: the newest row of each candidate, and one gap-free sequence a collection.

A write is one transaction: lock the collection's row, add n to its sequence, write n rows. So the
order of sequences is the order of commits: who has seen sequence s has seen all of 1..s.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from mmesh.content import Modality
from mmesh.errors import CollectionExists, CollectionNotFound, LogUnavailable, StorageFull
from services.index.rows import CandidateRow, CollectionRow, NewCandidate, attributes_from_json

_metadata = sa.MetaData()
_collections = sa.Table(
    "collections",
    _metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("epoch", sa.String, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("dim", sa.Integer, nullable=False),
    sa.Column("model_fingerprint", sa.String, nullable=False),
    sa.Column("attribute_types", sa.String, nullable=False),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
)
_candidates = sa.Table(
    "candidates",
    _metadata,
    sa.Column("epoch", sa.String, primary_key=True),
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("slot", sa.Integer, nullable=False),
    sa.Column("modality", sa.String, nullable=False),
    sa.Column("attributes", sa.String, nullable=False),
    sa.Column("parts", sa.String, nullable=False),
    sa.Column("vector", sa.LargeBinary, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("deleted", sa.Boolean, nullable=False),
    sa.Index("candidates_by_seq", "epoch", "seq"),
    sa.Index("candidates_by_modality", "epoch", "deleted", "modality"),
)
_requests = sa.Table(
    "requests",
    _metadata,
    sa.Column("epoch", sa.String, primary_key=True),
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("answer", sa.String, nullable=False),
    sa.Column("time", sa.DateTime(timezone=True), nullable=False),
    sa.Index("requests_by_time", "time"),
)

REMEMBERED = timedelta(days=2)


class Log:
    """The system of record; safe for several threads and several processes."""

    def __init__(self, url: str) -> None:
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self._engine = sa.create_engine(url, pool_size=4)
        sa.event.listen(self._engine, "connect", _configure_sqlite)
        sa.event.listen(self._engine, "begin", _begin_sqlite)
        with self._write() as connection:
            _metadata.create_all(connection)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    # -- collections

    def create_collection(self, name: str, dim: int, model_fingerprint: str) -> CollectionRow:
        """Return the collection, made unless it exists with the same dim and model.

        Raises:
            CollectionExists: it exists with others.
        """
        with self._write() as connection:
            row = _find_collection(connection, name)
            if row is None:
                connection.execute(_collections.insert().values(
                    name=name, epoch=uuid.uuid4().hex[:12], seq=0, dim=dim, attribute_types="{}",
                    model_fingerprint=model_fingerprint, create_time=datetime.now(UTC),
                ))  # fmt: skip
                row = _find_collection(connection, name)
            assert row is not None
        if (row.dim, row.model_fingerprint) != (dim, model_fingerprint):
            raise CollectionExists(
                f"collection {name!r} exists for model {row.model_fingerprint!r} of dim {row.dim}",
                {"collection": name},
            )
        return row

    def collection(self, name: str) -> CollectionRow:
        """Return the collection.

        Raises:
            CollectionNotFound: there is none.
        """
        with self._read() as connection:
            row = _find_collection(connection, name)
        if row is None:
            raise CollectionNotFound(name)
        return row

    def collections(self, after: str = "", limit: int | None = None) -> list[CollectionRow]:
        """Return collections with names after `after`, by name."""
        query = sa.select(_collections).where(_collections.c.name > after)
        with self._read() as connection:
            rows = connection.execute(query.order_by(_collections.c.name).limit(limit))
            return [_collection_row(row) for row in rows]

    def delete_collection(self, name: str) -> int:
        """Delete the collection and return how many candidates went with it."""
        with self._write() as connection:
            row = self._lock(connection, name)
            count = connection.execute(
                sa.select(sa.func.count()).where(
                    _candidates.c.epoch == row.epoch, ~_candidates.c.deleted
                )
            ).scalar_one()
            for table in (_candidates, _requests, _collections):
                connection.execute(table.delete().where(table.c.epoch == row.epoch))
            return int(count)

    def counts(self, row: CollectionRow) -> dict[Modality, int]:
        """Return the number of candidates by modality."""
        columns = _candidates.c
        query = sa.select(columns.modality, sa.func.count()).where(
            columns.epoch == row.epoch, ~columns.deleted
        )
        with self._read() as connection:
            found = {m: n for m, n in connection.execute(query.group_by(columns.modality))}
        return {modality: found.get(modality.value, 0) for modality in Modality}

    # -- writes

    def upsert(
        self,
        name: str,
        candidates: Sequence[NewCandidate],
        attribute_types: Callable[[Mapping[str, str]], Mapping[str, str]],
        request_id: str = "",
    ) -> str:
        """Write candidates in one transaction and return its token.

        `attribute_types` gets the collection's types and returns them with new ones added; it
        raises where a candidate does not fit.
        """

        def write(connection: sa.Connection, row: CollectionRow) -> str:
            types = attribute_types(row.attribute_types)
            if types != row.attribute_types:
                self._set(connection, row, attribute_types=json.dumps(dict(types)))
            first = self._advance(connection, row, len(candidates))
            values = [_values(c, row.epoch, first + n) for n, c in enumerate(candidates)]
            connection.execute(_UPSERT, values)
            return f"{row.epoch}:{first + len(candidates) - 1}"

        return self._once(name, request_id, write)

    def delete(self, name: str, ids: Sequence[str], request_id: str = "") -> tuple[int, str]:
        """Mark candidates deleted in one transaction; return how many there were, and its token."""

        def write(connection: sa.Connection, row: CollectionRow) -> str:
            columns = _candidates.c
            live = sa.and_(columns.epoch == row.epoch, ~columns.deleted, columns.id.in_(ids))
            found = connection.scalars(sa.select(columns.id).where(live)).all()
            first = self._advance(connection, row, len(found))
            gone = {"deleted": True, "vector": b"", "parts": "[]", "attributes": ""}
            for n, candidate_id in enumerate(found):
                one = sa.and_(columns.epoch == row.epoch, columns.id == candidate_id)
                connection.execute(_candidates.update().where(one).values(seq=first + n, **gone))
            return f"{len(found)} {row.epoch}:{first + len(found) - 1}"

        count, token = self._once(name, request_id, write).split(" ")
        return int(count), token

    def _once(
        self, name: str, request_id: str, write: Callable[[sa.Connection, CollectionRow], str]
    ) -> str:
        """Run `write` in one transaction, or return what it returned for this request before."""
        with self._write() as connection:
            row = self._lock(connection, name)
            requests = _requests.c
            if request_id:
                same = sa.and_(requests.epoch == row.epoch, requests.request_id == request_id)
                known = connection.scalar(sa.select(requests.answer).where(same))
                if known is not None:
                    return str(known)
            answer = write(connection, row)
            if request_id:
                now = datetime.now(UTC)
                connection.execute(_requests.delete().where(requests.time < now - REMEMBERED))
                connection.execute(_requests.insert().values(
                    epoch=row.epoch, request_id=request_id, answer=answer, time=now
                ))  # fmt: skip
            return answer

    def _lock(self, connection: sa.Connection, name: str) -> CollectionRow:
        row = _find_collection(connection, name, lock=True)
        if row is None:
            raise CollectionNotFound(name)
        return row

    def _advance(self, connection: sa.Connection, row: CollectionRow, count: int) -> int:
        """Add `count` to the sequence and return the first new number."""
        self._set(connection, row, seq=row.seq + count)
        return row.seq + 1

    def _set(self, connection: sa.Connection, row: CollectionRow, **values: Any) -> None:
        one = _collections.c.name == row.name
        connection.execute(_collections.update().where(one).values(**values))

    # -- reads

    def read_after(
        self, name: str, epoch: str, seq: int, slots: range, limit: int
    ) -> tuple[list[CandidateRow], int]:
        """Return rows of `slots` written after `seq`, in order, and how far that reaches.

        The second value is the sequence that a view reflects once it has applied the rows.

        Raises:
            CollectionNotFound: the collection is gone, or is another of the same name.
        """
        columns = _candidates.c
        wanted = sa.and_(columns.epoch == epoch, columns.seq > seq,
                         columns.slot.between(slots.start, slots.stop - 1))  # fmt: skip
        query = sa.select(columns.id, columns.slot, columns.modality, columns.attributes,
                          columns.seq, columns.deleted, columns.vector)  # fmt: skip
        with self._read() as connection:
            row = _find_collection(connection, name)
            if row is None or row.epoch != epoch:
                raise CollectionNotFound(name)
            found = connection.execute(query.where(wanted).order_by(columns.seq).limit(limit)).all()
        rows = [_candidate_row(r) for r in found]
        return rows, rows[-1].seq if len(rows) == limit else row.seq

    def get(self, name: str, ids: Sequence[str]) -> list[tuple[str, str, str]]:
        """Return (id, parts, attributes) of the candidates that exist."""
        epoch = self.collection(name).epoch
        columns = _candidates.c
        query = sa.select(columns.id, columns.parts, columns.attributes).where(
            columns.epoch == epoch, ~columns.deleted, columns.id.in_(ids)
        )
        with self._read() as connection:
            return [(r.id, r.parts, r.attributes) for r in connection.execute(query)]

    def page(self, name: str, after: str, limit: int) -> list[tuple[str, str, str]]:
        """Return (id, parts, attributes) of `limit` candidates with ids after `after`, by id."""
        epoch = self.collection(name).epoch
        columns = _candidates.c
        query = sa.select(columns.id, columns.parts, columns.attributes).where(
            columns.epoch == epoch, ~columns.deleted, columns.id > after
        )
        with self._read() as connection:
            rows = connection.execute(query.order_by(columns.id).limit(limit))
            return [(r.id, r.parts, r.attributes) for r in rows]

    # -- transactions

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        writing = self._engine.connect().execution_options(writes=True)
        with _as_our_errors(), writing as connection, connection.begin():
            yield connection

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with _as_our_errors(), self._engine.connect() as connection, connection.begin():
            yield connection


_new = insert(_candidates)
_UPSERT = _new.on_conflict_do_update(
    index_elements=["epoch", "id"],
    set_={c.name: _new.excluded[c.name] for c in _candidates.c if not c.primary_key},
)


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says
    connection.execute("PRAGMA busy_timeout = 10000")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _as_our_errors() -> Iterator[None]:
    try:
        yield
    except sa.exc.DBAPIError as error:
        cause = str(error.orig)
        if "full" in cause:
            raise StorageFull("the disk is full; nothing of the request was stored") from error
        raise LogUnavailable(f"the log cannot be used now: {cause}") from error


def _find_collection(
    connection: sa.Connection, name: str, *, lock: bool = False
) -> CollectionRow | None:
    query = sa.select(_collections).where(_collections.c.name == name)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    return _collection_row(row) if row else None


def _collection_row(row: Any) -> CollectionRow:
    values = dict(row._mapping)
    values["attribute_types"] = json.loads(values["attribute_types"])
    values["create_time"] = values["create_time"].replace(tzinfo=UTC)
    return CollectionRow(**values)


def _candidate_row(row: Any) -> CandidateRow:
    return CandidateRow(
        row.id, row.slot, Modality(row.modality), attributes_from_json(row.attributes),
        row.seq, row.deleted, row.vector,
    )  # fmt: skip


def _values(candidate: NewCandidate, epoch: str, seq: int) -> dict[str, Any]:
    return {
        "epoch": epoch, "id": candidate.id, "slot": candidate.slot,
        "modality": candidate.modality.value, "attributes": candidate.attributes,
        "parts": candidate.parts, "vector": candidate.vector, "seq": seq, "deleted": False,
    }  # fmt: skip
