"""The log in a file: SQLite in WAL mode; a commit is on disk when it returns."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from mmesh.errors import DataLoss, MmeshError, StorageFull
from services.index.log.databases.database import WAIT_S, Database, unavailable
from services.index.log.ledger import Row
from services.index.log.tables import candidates

MIGRATION_WAIT_S = 3600.0
PAGE_BYTES = 8192
"""Size of the file's pages: 4 rows of 384-d vectors; holds for new files."""
WAL_BYTES = 64 << 20
"""Size to which the write-ahead log is cut when it begins anew: it grows while readers hold it."""
CACHE_KIB = 512
"""Page cache of a connection. SQLite's default of 2 MB would be held by each of five in a process,
and be emptied by every commit of another one; the system caches the file for all of them."""
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_NO_TEXT = "Could not decode to UTF-8"
"""What the driver says of a text whose bytes are damaged."""


class Sqlite(Database):
    """A log in a SQLite file that several processes of one machine share."""

    def __init__(self, url: str) -> None:
        path = url.removeprefix("sqlite:///")
        self._folder = Path(path).parent
        engine = sa.create_engine(url, pool_size=4, pool_timeout=WAIT_S)
        sa.event.listen(engine, "connect", self._configure)
        sa.event.listen(engine, "begin", _begin)
        super().__init__(engine)
        self._path = path
        self._watch: sqlite3.Connection | None = None
        self._writer = engine.execution_options(begin="BEGIN IMMEDIATE")
        self._reader = engine.execution_options(begin="BEGIN")

    def close(self) -> None:
        """Close all connections."""
        if self._watch is not None:
            self._watch.close()
        super().close()

    @property
    def _writing(self) -> sa.Engine:
        return self._writer

    @property
    def _snapshots(self) -> sa.Engine:
        return self._reader

    @property
    def _statements(self) -> sa.Engine:
        return self._engine

    @contextmanager
    def migration(self) -> Iterator[sa.Connection]:
        """Begin a transaction, however long that of another process takes."""
        with self.reporting(), self._writer.connect() as connection:
            driver: Any = connection.connection.dbapi_connection
            driver.execute(f"PRAGMA busy_timeout = {int(MIGRATION_WAIT_S * 1000)}")
            try:
                with connection.begin():
                    yield connection
            finally:
                driver.execute(f"PRAGMA busy_timeout = {int(WAIT_S * 1000)}")

    def version(self) -> int | None:
        """Return what SQLite counts up at the commits of others, seen from one connection."""
        try:
            if self._watch is None:
                self._watch = sqlite3.connect(self._path, 0, check_same_thread=False)
            (version,) = self._watch.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error:  # busy, or away: whoever reads will hear of it
            return None
        return int(version)

    def lock_names(self, connection: sa.Connection) -> None:
        """Do nothing: BEGIN IMMEDIATE keeps all other writers out."""

    def put(
        self, connection: sa.Connection, rows: Sequence[Row], stored: Mapping[int, Any]
    ) -> None:
        """Insert or replace the rows."""
        connection.exec_driver_sql(_PUT, list(rows))

    def is_one_of(self, column: sa.Column[str], name: str) -> sa.ColumnElement[bool]:
        """Return `column IN (the elements of a JSON array)`."""
        values = sa.func.json_each(sa.bindparam(name)).table_valued("value")
        return column.in_(sa.select(values.c.value))

    def many(self, values: Sequence[str]) -> str:
        """Return a JSON array."""
        return json.dumps(list(values))

    def octets(self, column: sa.Column[Any]) -> sa.ColumnElement[int]:
        """Return the length as a blob: that of a text counts characters."""
        return sa.func.length(sa.cast(column, sa.LargeBinary), type_=sa.Integer)

    @property
    def driver_error(self) -> type[Exception]:
        """That of sqlite3."""
        return sqlite3.Error

    def explain(self, error: BaseException) -> MmeshError | None:
        """Tell a full disk and a damaged file from a database that is busy."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return StorageFull("the disk is full; nothing of the request was stored")
        if code in _CORRUPT or _NO_TEXT in str(error):
            return DataLoss(f"the file of the log is damaged: {error}; restore a copy of it")
        return unavailable(str(error)) if isinstance(error, sqlite3.OperationalError) else None

    def _configure(self, connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where `_begin` says
        connection.execute(f"PRAGMA busy_timeout = {int(WAIT_S * 1000)}")
        if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            _patiently(connection, "PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        connection.execute(f"PRAGMA cache_size = {-CACHE_KIB}")


def _patiently(connection: Any, statement: str) -> None:
    """Run a statement for which SQLite does not itself wait until others are done."""
    until = time.monotonic() + WAIT_S
    while True:
        try:
            connection.execute(statement)
            return
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def _begin(connection: sa.Connection) -> None:
    statement = connection.get_execution_options().get("begin")
    if statement:
        connection.exec_driver_sql(statement)


def _put_statement() -> str:
    new = insert(candidates)
    values = {c.name: new.excluded[c.name] for c in candidates.c if not c.primary_key}
    upsert = new.on_conflict_do_update(index_elements=["key", "id"], set_=values)
    return str(upsert.compile(dialect=sa.create_engine("sqlite://").dialect))


_PUT = _put_statement()
"""As text, for rows that go to the driver as they are; SQLAlchemy would handle each value."""
