"""Files of the journals of ingests: where they are kept, one for each collection, and opened."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmesh.errors import InvalidField
from mmesh.values.tokens import Token

if TYPE_CHECKING:
    from mmesh.collections import Collection

_PREFIX = "collection-"
BUSY_S = 60.0
"""Longest wait for another process that writes a journal."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS sources (number INTEGER PRIMARY KEY, path TEXT UNIQUE);
CREATE TABLE IF NOT EXISTS items (
    id TEXT PRIMARY KEY, source INTEGER, stamp BLOB, digest BLOB, run INTEGER, repeated INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refusals (id TEXT PRIMARY KEY, stamp BLOB, reason TEXT, message TEXT);
"""


def file_of(collection: Collection) -> Path:
    """Return where the journal of a collection is kept, as it was created on its mesh."""
    epoch = Token.parse(collection.token).epoch
    return _folder() / f"{_PREFIX}{_digest_of(epoch, collection.create_time.isoformat())}.sqlite"


def kept_by_address(collection: Collection, address: str) -> list[Path]:
    """Return the journals of a collection that earlier releases kept, the newest first.

    They named them by the address of the mesh, so that there is one for each that was used. What
    does not say of which collection it is must have this address.
    """
    of_address = _folder() / f"{_digest_of(address, collection.name)}.sqlite"
    found: list[tuple[int, Path]] = []
    for file in _folder().glob("*.sqlite"):
        if not file.name.startswith(_PREFIX):
            with suppress(sqlite3.Error, InvalidField):
                newest = _newest_in(file, collection)
                if newest or (newest == 0 and file == of_address):
                    found.append((newest, file))
    return [file for _, file in sorted(found, reverse=True)]


def discard(files: Iterable[Path]) -> None:
    """Remove journals whose content another one has."""
    for file in files:
        with suppress(OSError):
            file.unlink()


def _newest_in(file: Path, collection: Collection) -> int | None:
    """Return the newest write that a journal of this collection knows; None for another's.

    0 where it knows none: then only the time says of which collection it is.
    """
    with closing(sqlite3.connect(file, timeout=BUSY_S)) as database:
        facts = dict(database.execute("SELECT name, value FROM facts"))
    if facts.get("created") != collection.create_time.isoformat():
        return None
    known = facts.get("newest") or facts.get("token")
    if not known:
        return 0
    token = Token.parse(known)
    return token.seq if token.shares_history(Token.parse(collection.token)) else None


def _digest_of(*key: str) -> str:
    return hashlib.sha256(json.dumps([*key]).encode()).hexdigest()[:24]


def _folder() -> Path:
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError:
        raise _unusable("of ingests", "this user has no home folder") from None
    return Path(state) / "mmesh" / "ingests"


def opened(file: Path | None) -> sqlite3.Connection:
    """Return the database of a file; a damaged one begins anew."""
    if file is None:
        return _connected(":memory:")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return _connected(file)
    except OSError as error:
        raise _unusable(file, f"{error.strerror}: {error.filename}") from None
    except sqlite3.OperationalError as error:
        raise _unusable(file, error) from None
    except sqlite3.DatabaseError:
        file.unlink()
        return _connected(file)


def copy_of(file: Path | None) -> sqlite3.Connection:
    """Return a copy in memory of the database of a file; nobody has to wait for its user."""
    if file is None or not os.path.exists(file):  # which raises nothing
        return _connected(":memory:")
    copy = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        with closing(sqlite3.connect(file, timeout=BUSY_S)) as database:
            database.backup(copy)
        copy.executescript(_SCHEMA)
    except sqlite3.OperationalError as error:
        raise _unusable(file, error) from None
    except sqlite3.DatabaseError:  # a damaged one is as if it were not there
        return _connected(":memory:")
    return copy


def _unusable(file: Path | str, problem: object) -> click.ClickException:
    return click.ClickException(
        f"the journal {file} cannot be used: {problem}; XDG_STATE_HOME names another folder for "
        "it, and --no-journal does without"
    )


def _connected(place: Path | str) -> sqlite3.Connection:
    database = sqlite3.connect(place, timeout=BUSY_S, check_same_thread=False)
    database.execute("PRAGMA synchronous = NORMAL")
    database.executescript(_SCHEMA)
    return database
