"""Which database keeps the log, by its address."""

from __future__ import annotations

from mmesh.errors import FailedPrecondition
from services.index.log.databases.database import Database

_ENGINES = ("sqlite:///", "postgresql+psycopg://")


def open_database(url: str) -> Database:
    """Return the database at an SQLAlchemy address; nothing is connected yet.

    Raises:
        FailedPrecondition: it is of another kind than SQLite and PostgreSQL by psycopg.
    """
    if url.startswith(_ENGINES[0]):
        from services.index.log.databases.sqlite import Sqlite

        return Sqlite(url)
    if url.startswith(_ENGINES[1]):
        from services.index.log.databases.postgres import Postgres

        return Postgres(url)
    kind = url.partition(":")[0][:40]
    message = f"the log's address begins with {kind!r}; use {' or '.join(_ENGINES)}"
    raise FailedPrecondition(message)
