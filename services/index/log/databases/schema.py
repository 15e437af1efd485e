"""The version of the log's tables: looked at when a log is opened, brought up where need be.

Migrations expand first: processes of the release before go on beside tables that have more than
they know, and start on them, too. What nobody reads any more is taken away (contracted) by a later
release, which raises `OLDEST`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from mmesh.errors import FailedPrecondition
from services.index.log.databases.database import Database

if TYPE_CHECKING:
    from alembic.config import Config

VERSION = "0007"
"""The newest migration of this release."""
OLDEST = "0003"
"""Processes that know the tables from this version on may use those of `VERSION`."""
FIRST = "0001"
"""What databases are that are older than the table of versions."""
MIGRATIONS = Path(__file__).parent / "migrations"
_versions = sa.table("alembic_version", sa.column("version_num"))
_compatibility = sa.table("compatibility", sa.column("oldest"))


@dataclass(frozen=True, slots=True)
class Step:
    """One migration that a log needs."""

    version: str
    title: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a log is, and what brings it to `VERSION`."""

    version: str | None
    """None for an empty database."""
    steps: tuple[Step, ...]

    @property
    def suits_running(self) -> bool:
        """Whether processes that use the log as it is may go on during the steps and after."""
        return self.version is None or self.version >= OLDEST


def ensure_schema(database: Database) -> None:
    """Migrate the database to `VERSION` unless it is there; many processes may do so at once.

    Tables of a newer version are left as they are.

    Raises:
        FailedPrecondition: it is of a newer version that this release cannot use.
        LogUnavailable: it cannot be reached.
    """
    with database.snapshot() as connection:
        if not _is_due(connection):
            return
    with database.migration() as connection:
        if _is_due(connection):  # no other process has been quicker
            _migrate(connection, _version(connection))


def outlook(database: Database) -> Outlook:
    """Return what `ensure_schema` would do; changes nothing.

    Raises:
        FailedPrecondition: as `ensure_schema`.
        LogUnavailable: it cannot be reached.
    """
    from alembic.script import ScriptDirectory

    with database.snapshot() as connection:
        version = _version(connection)
        if not _is_due(connection):
            return Outlook(version, ())
        scripts = ScriptDirectory.from_config(_config(connection))
    due = [one for one in scripts.walk_revisions() if version is None or one.revision > version]
    steps = [Step(one.revision, (one.doc or "").rstrip(".")) for one in reversed(due)]
    return Outlook(version, tuple(steps))


def _is_due(connection: sa.Connection) -> bool:
    """Tell whether there is something to migrate."""
    version = _version(connection)
    if version is not None and version > VERSION:
        _check_compatible(connection, version)
        return False
    return version != VERSION


def _version(connection: sa.Connection) -> str | None:
    """Return the version, None for an empty database."""
    tables = sa.inspect(connection)
    if tables.has_table(_versions.name):
        return connection.scalar(sa.select(_versions.c.version_num))
    return FIRST if tables.has_table("collections") else None


def _check_compatible(connection: sa.Connection, version: str) -> None:
    oldest = connection.scalar(sa.select(_compatibility.c.oldest))
    if oldest is None or oldest > VERSION:
        raise FailedPrecondition(
            f"the log is of version {version}, written by a newer release of mmesh that shares it "
            f"with versions from {oldest or version} on; this release knows versions up to "
            f"{VERSION}: run the newer release",
            {"version": version, "known": VERSION},
        )


def _migrate(connection: sa.Connection, version: str | None) -> None:
    from alembic import command  # only a migration needs it, and it takes its time to import

    config = _config(connection)
    if version == FIRST and not sa.inspect(connection).has_table(_versions.name):
        command.stamp(config, FIRST)
    command.upgrade(config, VERSION)
    connection.execute(_compatibility.delete())
    connection.execute(_compatibility.insert(), {"oldest": OLDEST})


def _config(connection: sa.Connection) -> Config:
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config
