"""Connections to the log's database: how transactions begin, and what failures mean.

What differs between SQLite and PostgreSQL is here and in the two modules that derive from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from mmesh.errors import LogUnavailable, MmeshError
from services.index.log.ledger import Row

WAIT_S = 5.0
"""Longest wait for a lock, a connection or an answer."""


class Database(ABC):
    """A database that keeps a log; safe for several threads."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Begin a transaction that is committed at the end, and rolled back by an exception."""
        with self.reporting(), self._writing.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """Begin a transaction whose reads all see the same state."""
        with self.reporting(), self._snapshots.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def statement(self) -> Iterator[sa.Connection]:
        """Open a connection for one statement, which sees one state without a transaction."""
        with self.reporting(), self._statements.connect() as connection:
            yield connection

    @contextmanager
    def migration(self) -> Iterator[sa.Connection]:
        """Begin a transaction that no other migration runs beside, however long it takes."""
        with self.write() as connection:
            yield connection

    @property
    @abstractmethod
    def _writing(self) -> sa.Engine: ...

    @property
    @abstractmethod
    def _snapshots(self) -> sa.Engine: ...

    @property
    @abstractmethod
    def _statements(self) -> sa.Engine: ...

    def version(self) -> int | None:
        """Return a number that changes with every commit; None where that is not known at once.

        Never waits; for one thread only.
        """
        return None

    @abstractmethod
    def lock_names(self, connection: sa.Connection) -> None:
        """Keep other transactions from changing names of collections until this one ends."""

    @abstractmethod
    def put(
        self, connection: sa.Connection, rows: Sequence[Row], stored: Mapping[int, Any]
    ) -> None:
        """Write rows of the table `candidates`; `stored` has the ids, by key, that are replaced."""

    @abstractmethod
    def is_one_of(self, column: sa.Column[str], name: str) -> sa.ColumnElement[bool]:
        """Return a condition with one parameter called `name`; see `many`."""

    @abstractmethod
    def many(self, values: Sequence[str]) -> Any:
        """Return values as the parameter of `is_one_of`."""

    @abstractmethod
    def octets(self, column: sa.Column[Any]) -> sa.ColumnElement[int]:
        """Return the number of bytes of a text or of binary data."""

    @abstractmethod
    def explain(self, error: BaseException) -> MmeshError | None:
        """Return what a failure of the driver means; None for a defect of ours."""

    @property
    @abstractmethod
    def driver_error(self) -> type[Exception]:
        """What the driver raises where it is used without SQLAlchemy, which would wrap it."""

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Turn failures of the database into errors of mmesh, whoever raises them."""
        try:
            yield
        except sa.exc.TimeoutError as error:
            raise LogUnavailable("all connections to the log are busy") from error
        except sa.exc.DBAPIError as error:
            meaning = self.explain(error.orig) if error.orig is not None else None
            if meaning is None:
                raise
            raise meaning from error
        except self.driver_error as error:
            meaning = self.explain(error)
            if meaning is None:
                raise
            raise meaning from error


def unavailable(why: str) -> LogUnavailable:
    """Return the error for a database that does not answer now; `why` names no host or user."""
    return LogUnavailable(f"the log cannot be used now: {why}; nothing was acknowledged")
