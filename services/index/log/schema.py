"""The version of the log's tables: looked at when a log is opened, brought up where need be."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from mmesh.errors import FailedPrecondition
from services.index.log.database import Database

VERSION = "0003"
"""The newest migration of this release."""
FIRST = "0001"
"""What databases are that are older than the table of versions."""
MIGRATIONS = Path(__file__).parent / "migrations"
_versions = sa.table("alembic_version", sa.column("version_num"))


def ensure_schema(database: Database) -> None:
    """Migrate the database to `VERSION` unless it is there; many processes may do so at once.

    Raises:
        FailedPrecondition: it is of a newer version.
        LogUnavailable: it cannot be reached.
    """
    with database.snapshot() as connection:
        version = _version(connection)
    if version == VERSION:
        return
    _check_known(version)
    with database.migration() as connection:
        version = _version(connection)  # another process may have been quicker
        _check_known(version)
        if version != VERSION:
            _migrate(connection, version)


def _version(connection: sa.Connection) -> str | None:
    """Return the version, None for an empty database."""
    tables = sa.inspect(connection)
    if tables.has_table(_versions.name):
        return connection.scalar(sa.select(_versions.c.version_num))
    return FIRST if tables.has_table("collections") else None


def _check_known(version: str | None) -> None:
    if version is not None and version > VERSION:
        raise FailedPrecondition(
            f"the log is of version {version}, written by a newer release of mmesh; this release "
            f"knows versions up to {VERSION}: run the newer release",
            {"version": version, "known": VERSION},
        )


def _migrate(connection: sa.Connection, version: str | None) -> None:
    from alembic import command  # only a migration needs it, and it takes its time to import
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    if version == FIRST and not sa.inspect(connection).has_table(_versions.name):
        command.stamp(config, FIRST)
    command.upgrade(config, VERSION)
