"""The log in PostgreSQL, by psycopg 3: what it needs to be quick, and never to wait for long."""

from __future__ import annotations

import select
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.pq import Format
from sqlalchemy.dialects.postgresql import ARRAY

from mmesh.errors import DataLoss, MmeshError, StorageFull
from services.index.log.databases.database import WAIT_S, Database, unavailable
from services.index.log.ledger import Row
from services.index.log.tables import candidates

Result = TypeVar("Result")

CONNECT_S = 3
NAMES_LOCK, MIGRATION_LOCK = 7_736_374_101, 7_736_374_102
"""Advisory locks: any two numbers that other users of the database do not take."""
_DISK_FULL = "53100"
_CORRUPT = ("XX001", "XX002")
"""Of pages and indexes that the server cannot read."""
_COPY = f"COPY candidates ({', '.join(c.name for c in candidates.c)}) FROM STDIN (FORMAT BINARY)"
_TYPES = ("int4", "text", "int2", "int2", "text", "text", "bytea", "int8", "int8")
_SERVER_OPTIONS = {
    "statement_timeout": f"{WAIT_S}s",
    "lock_timeout": f"{0.8 * WAIT_S}s",
    "idle_in_transaction_session_timeout": "30s",  # a frozen client must not keep the others out
}
_CONNECT_OPTIONS = {
    "connect_timeout": CONNECT_S,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": int(WAIT_S * 1000),
    "application_name": "mmesh",
}


class Postgres(Database):
    """A log in a PostgreSQL database."""

    def __init__(self, url: str) -> None:
        address = sa.make_url(url)
        options = " ".join(f"-c {name}={value}" for name, value in _SERVER_OPTIONS.items())
        defaults = _CONNECT_OPTIONS | {"options": options}
        given = {name: value for name, value in defaults.items() if name not in address.query}
        engine = sa.create_engine(address, pool_size=4, pool_timeout=WAIT_S, connect_args=given)
        sa.event.listen(engine, "do_connect", _connect)
        sa.event.listen(engine, "checkout", _refuse_ended)
        sa.event.listen(engine, "before_cursor_execute", _choose_format)
        super().__init__(engine)
        self._reader = engine.execution_options(isolation_level="REPEATABLE READ")
        self._single = engine.execution_options(isolation_level="AUTOCOMMIT")

    @property
    def _writing(self) -> sa.Engine:
        return self._engine

    @property
    def _snapshots(self) -> sa.Engine:
        return self._reader

    @property
    def _statements(self) -> sa.Engine:
        return self._single

    @contextmanager
    def migration(self) -> Iterator[sa.Connection]:
        """Begin a transaction, however long that of another process takes."""
        with self.reporting(), self._engine.connect() as connection:
            driver: Any = connection.connection.dbapi_connection
            driver.wait_s = None
            try:
                with connection.begin():
                    for name in ("statement_timeout", "lock_timeout"):
                        connection.exec_driver_sql(f"SET LOCAL {name} = 0")
                    _lock(connection, MIGRATION_LOCK)
                    yield connection
            finally:
                driver.wait_s = WAIT_S

    def lock_names(self, connection: sa.Connection) -> None:
        """Take the advisory lock of the names."""
        _lock(connection, NAMES_LOCK)

    def put(
        self, connection: sa.Connection, rows: Sequence[Row], stored: Mapping[int, Any]
    ) -> None:
        """Delete the rows that are replaced and copy the new ones in.

        That is what an update does inside, too: `seq` is indexed, so every row gets a new place.
        Nobody else inserts between the two, since the collection's row is locked.
        """
        for key, ids in stored.items():
            if ids:
                connection.execute(_DELETE, {"of_key": key, "ids": self.many(ids)})
        driver: Any = connection.connection.dbapi_connection
        with driver.cursor() as cursor, cursor.copy(_COPY) as copy:
            copy.set_types(_TYPES)
            for row in rows:
                copy.write_row(row)

    def is_one_of(self, column: sa.Column[str], name: str) -> sa.ColumnElement[bool]:
        """Return `column = ANY(array)`."""
        return _is_one_of(column, name)

    def many(self, values: Sequence[str]) -> list[str]:
        """Return a list, which psycopg sends as an array."""
        return list(values)

    def octets(self, column: sa.Column[Any]) -> sa.ColumnElement[int]:
        """Return what is known of a value that is stored elsewhere without reading it."""
        return sa.func.octet_length(column, type_=sa.Integer)

    @property
    def driver_error(self) -> type[Exception]:
        """That of psycopg."""
        return psycopg.Error

    def explain(self, error: BaseException) -> MmeshError | None:
        """Tell a full disk and damaged data from a database that does not answer."""
        state = getattr(error, "sqlstate", None)
        if state in _CORRUPT:
            return DataLoss(f"the log is damaged: {_first_line(error)}; restore a copy of it")
        if state == _DISK_FULL:
            return StorageFull("the disk of the log is full; nothing of the request was stored")
        gone = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
        return unavailable(type(error).__name__) if isinstance(error, gone) else None


class _Connection(psycopg.Connection[Any]):
    """A connection that gives up when the server falls silent, and is closed then."""

    wait_s: float | None = WAIT_S + 0.5  # the server's own timeouts come first

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        """Run a protocol exchange."""
        bounded = gen if self.wait_s is None else _bounded(gen, self.wait_s, self.pgconn)
        return super().wait(bounded, *arguments, **options)


def _bounded(
    exchange: Generator[Any, Any, Result], wait_s: float, pgconn: Any
) -> Generator[Any, Any, Result]:
    """Pass everything through, but end the connection after `wait_s` without a sign of life."""
    silent_since = time.monotonic()
    try:
        wanted = next(exchange)
        while True:
            ready = yield wanted
            if ready:
                silent_since = time.monotonic()
            elif time.monotonic() - silent_since > wait_s:
                pgconn.finish()
                raise psycopg.OperationalError(f"the server has not answered for {wait_s} s")
            wanted = exchange.send(ready)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # its type is not kept


def _connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> _Connection:
    return _Connection.connect(*arguments, **options)


def _refuse_ended(connection: Any, _record: Any, _proxy: Any) -> None:
    """Have the pool replace a connection that the server has closed while it was idle.

    Idle connections have nothing to read, unless it is the server's farewell. This costs no round
    trip, and after a restart of the server no call fails.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        raise sa.exc.DisconnectionError("the server has ended this connection")


def _choose_format(
    _connection: Any, cursor: Any, _statement: Any, _parameters: Any, context: Any, _many: Any
) -> None:
    """Fetch vectors in binary form: half the bytes, and no parsing."""
    if context is not None and context.execution_options.get("binary"):
        cursor.format = Format.BINARY


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]


def _lock(connection: sa.Connection, number: int) -> None:
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))


def _is_one_of(column: sa.Column[str], name: str) -> sa.ColumnElement[bool]:
    values: Any = sa.bindparam(name, type_=ARRAY(sa.Text))
    return column == sa.any_(values)


_DELETE = candidates.delete().where(
    candidates.c.key == sa.bindparam("of_key"), _is_one_of(candidates.c.id, "ids")
)
