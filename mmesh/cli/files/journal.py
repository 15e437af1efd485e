"""What earlier ingests put into a collection, kept on disk, so that only what changed is sent."""

from __future__ import annotations

import enum
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmesh.cli.files.journal_files import (
    BUSY_S,
    copy_of,
    discard,
    file_of,
    kept_by_address,
    opened,
)
from mmesh.values.tokens import Token

if TYPE_CHECKING:
    from mmesh.cli.files.sources.items import Item
    from mmesh.collections import Collection

_EVERY_S, _MOST_WAITING = 0.5, 5000
_WRITE = """
INSERT INTO items VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
    source = excluded.source, stamp = excluded.stamp, digest = excluded.digest,
    run = max(run, excluded.run), repeated = excluded.repeated
"""  # another process may have seen it in a later run
_ADD_SOURCE = "INSERT INTO sources (path) VALUES (?) ON CONFLICT DO NOTHING"
_DISTRUST = "UPDATE items SET stamp = NULL, digest = x'' WHERE digest IS NOT NULL"
_ADOPTED = """
SELECT id, path, stamp, digest, repeated FROM items JOIN sources ON number = source
WHERE digest IS NOT NULL
"""
_ADOPT = """
INSERT OR IGNORE INTO items
    VALUES (?, (SELECT number FROM sources WHERE path = ?), ?, ?, 0, ?)
"""
_READ = "SELECT source, stamp, digest, run, repeated FROM items WHERE id = ?"


class Seen(enum.Enum):
    """What the journal knows of an item."""

    NEW = enum.auto()
    """It is not stored, as far as is known."""
    CHANGED = enum.auto()
    """It is stored and may have changed."""
    MOVED = enum.auto()
    """It is stored from another source, and may be something else."""
    SAME = enum.auto()
    """It is stored as it is now."""
    AGAIN = enum.auto()
    """Its id came before, in this run."""


@dataclass(slots=True)
class _Entry:
    """What is known of an id."""

    source: int
    stamp: bytes | None
    digest: bytes | None
    """None when it is not stored."""
    run: int
    """The last run that saw it."""
    repeated: bool
    """That run saw it more than once, so that it is not told by a stamp."""


class Journal:
    """Remembers what is stored of the items of sources, by id; a context manager.

    It belongs to a collection as it was created, on one mesh. An item whose stamp or digest is
    that of the stored one need not be sent again; one that no run of its source sees is gone.

    Args:
        file: where it is kept; None for one that is empty and is not kept.
        created: names the collection as it was created.
        dry: forget at the end what happened.
        older: returns files of earlier releases of which one that is new takes over what they know.
    """

    def __init__(
        self,
        file: Path | None,
        created: str,
        *,
        dry: bool = False,
        older: Callable[[], Sequence[Path]] = tuple,
    ) -> None:
        self._database = copy_of(file) if dry else opened(file)
        self._lock = threading.RLock()
        self._waiting: dict[str, _Entry] = {}
        self._refusals: dict[str, tuple[bytes, str, str] | None] = {}  # None: stored after all
        self._acknowledged = ""
        self._written_at = time.monotonic()
        adopted = self._begin(created, older)
        if not dry:
            discard(adopted)

    @classmethod
    def of(cls, collection: Collection, address: str, *, dry: bool = False) -> Journal:
        """Return the journal of a collection, by whatever address its mesh is reached now."""
        file = file_of(collection)
        created = collection.create_time.isoformat()
        return cls(file, created, dry=dry, older=lambda: kept_by_address(collection, address))

    def _begin(self, created: str, older: Callable[[], Sequence[Path]]) -> Sequence[Path]:
        """Begin a run; forget all of another collection. Return what was taken over."""
        self._begin_transaction()
        adopted: Sequence[Path] = ()
        if self._fact("created") != created:
            self._database.execute("DELETE FROM items")
            self._set_fact("token", "")
            self._set_fact("newest", "")
            files = older()
            adopted = [file for file in files if self._adopt(file)]
            if len(files) > 1:  # one may have what a run with another removed: ids are compared
                self._set_fact("token", "")
        self._set_fact("created", created)
        self._run = int(self._fact("run") or 0) + 1
        self._set_fact("run", str(self._run))
        self._database.commit()
        self._sources: dict[str, int] = {}  # numbers that are known by now
        return adopted

    def _adopt(self, file: Path) -> bool:
        """Take over what another file knows and this one does not; return whether it is read."""
        try:
            with closing(sqlite3.connect(file, timeout=BUSY_S)) as other:
                facts = dict(other.execute("SELECT name, value FROM facts"))
                self._database.executemany(_ADD_SOURCE, other.execute("SELECT path FROM sources"))
                self._database.executemany(_ADOPT, other.execute(_ADOPTED))
        except sqlite3.Error:
            return False
        for name in ("token", "newest"):
            self._set_fact(name, self._fact(name) or facts.get(name) or "")
        return True

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock, suppress(sqlite3.ProgrammingError):
            self._flush()
            self._database.close()

    # -- during a run

    @property
    def stored(self) -> int:
        """How many candidates are stored, as far as is known."""
        with self._lock:
            self._flush()
            query = "SELECT count(*) FROM items WHERE digest IS NOT NULL"
            return int(self._database.execute(query).fetchone()[0])

    def look(self, item: Item) -> Seen:
        """Return what is known of an item, and note that this run saw it."""
        with self._lock:
            source = self._number_of(item.source)
            known = self._entry(item.id)
            if known is None:
                self._write(item.id, _Entry(source, None, None, self._run, False))
                return Seen.NEW
            was_seen, was_repeated = known.run == self._run, known.repeated
            has_moved = known.source != source
            known.repeated, known.run, known.source = was_seen, self._run, source
            if has_moved:  # stamps compare within a source, also when this run does not end
                known.stamp = None
            self._write(item.id, known)
            if was_seen:
                return Seen.AGAIN
            if known.digest is None:
                return Seen.NEW
            if has_moved:
                return Seen.MOVED
            is_same = known.stamp == item.stamp and not was_repeated
            return Seen.SAME if is_same else Seen.CHANGED

    def see(self, item_id: str, source: str) -> None:
        """Note that an item is there, though it cannot be read."""
        with self._lock:
            known = self._entry(item_id) or _Entry(0, None, None, self._run, False)
            known.run, known.source = self._run, self._number_of(source)
            self._write(item_id, known)

    def is_stored_as(self, item: Item, digest: bytes) -> bool:
        """Tell whether an item that was read is stored like this; then its stamp is noted."""
        with self._lock:
            known = self._entry(item.id)
            if known is None or known.digest != digest or known.repeated:
                return False
            known.stamp = item.stamp
            self._write(item.id, known)
            return True

    def acknowledge(self, token: str) -> None:
        """Note the write that stored what is noted as stored next, or a later one."""
        with self._lock:
            self._acknowledged = token or self._acknowledged

    def store(self, item: Item, digest: bytes) -> None:
        """Note that an item is stored, by a write that is acknowledged."""
        with self._lock:
            known = self._entry(item.id)
            repeated = known is not None and known.repeated
            source = self._number_of(item.source)
            self._refusals[item.id] = None
            self._write(item.id, _Entry(source, item.stamp, digest, self._run, repeated))

    def refuse(self, item: Item, reason: str, message: str) -> None:
        """Note that the mesh refused an item, and why."""
        with self._lock:
            words = message.encode(errors="replace").decode()
            self._refusals[item.id] = item.stamp, reason, words

    def refusal(self, item: Item) -> tuple[str, str] | None:
        """Return reason and message with which the mesh refused an item as it is now."""
        with self._lock:
            query = "SELECT reason, message FROM refusals WHERE id = ? AND stamp = ?"
            found = self._database.execute(query, (item.id, item.stamp)).fetchone()
            return (found[0], found[1]) if found else None

    # -- what is gone

    def gone(self, sources: Iterable[str]) -> list[str]:
        """Return the ids that are stored from these sources and that this run did not see."""
        with self._lock:
            self._flush()
            paths = list(sources)
            marks = ", ".join("?" * len(paths))
            rows = self._database.execute(
                "SELECT id FROM items WHERE run < ? AND digest IS NOT NULL AND source IN "
                f"(SELECT number FROM sources WHERE path IN ({marks})) ORDER BY id",
                (self._run, *paths),
            )
            return [row[0] for row in rows]

    def forget(self, ids: Iterable[str]) -> None:
        """Forget items, which are in the collection no more."""
        with self._lock:
            self._flush()
            self._database.executemany("DELETE FROM items WHERE id = ?", ((i,) for i in ids))
            self._database.commit()

    # -- whether it is still true

    def agrees_with(self, token: str) -> bool:
        """Tell whether the collection was not written to since the last run ended."""
        with self._lock:
            return self._fact("token") == token

    @property
    def newest(self) -> str:
        """Token of the newest write of what is noted as stored; empty where none is known."""
        with self._lock:
            self._flush()
            return self._fact("newest") or self._fact("token")

    def distrust(self) -> None:
        """Take all that is stored for changed: the collection may hold it as it was before."""
        with self._lock:
            self._flush()
            self._database.execute(_DISTRUST)
            self._set_fact("token", "")
            self._set_fact("newest", "")
            self._database.commit()

    def keep_only(self, ids: Iterable[str]) -> int:
        """Take for stored only what is among these ids; return how many others there were."""
        with self._lock:
            self._flush()
            self._database.execute("CREATE TEMP TABLE present (id TEXT PRIMARY KEY)")
            self._database.executemany(
                "INSERT OR IGNORE INTO present VALUES (?)", ((i,) for i in ids)
            )
            lost = self._database.execute(
                "DELETE FROM items WHERE digest IS NOT NULL AND id NOT IN (SELECT id FROM present)"
            ).rowcount
            self._database.execute("DROP TABLE present")
            self._database.commit()
            return lost

    def finish(self, token: str) -> None:
        """Note that a run came to its end, and the state of the collection that this tells of.

        Empty where that is in doubt: then the next run compares ids.
        """
        with self._lock:
            self._flush()
            self._set_fact("token", token)
            self._database.commit()

    # -- the database

    def _entry(self, item_id: str) -> _Entry | None:
        if item_id in self._waiting:
            return self._waiting[item_id]
        found = self._database.execute(_READ, (item_id,)).fetchone()
        return _Entry(*found) if found else None

    def _write(self, item_id: str, entry: _Entry) -> None:
        self._waiting[item_id] = entry
        late = time.monotonic() - self._written_at > _EVERY_S
        if late or len(self._waiting) >= _MOST_WAITING:
            self._flush()

    def _flush(self) -> None:
        """Write what waits, in one short transaction."""
        rows = [
            (i, e.source, e.stamp, e.digest, e.run, e.repeated) for i, e in self._waiting.items()
        ]
        if not rows and not self._acknowledged and not self._refusals:
            return
        self._begin_transaction()
        self._database.executemany(_WRITE, rows)
        refusals = self._refusals.items()
        stored = ((i,) for i, refusal in refusals if refusal is None)
        self._database.executemany("DELETE FROM refusals WHERE id = ?", stored)
        refused = ((i, *refusal) for i, refusal in refusals if refusal is not None)
        self._database.executemany("INSERT OR REPLACE INTO refusals VALUES (?, ?, ?, ?)", refused)
        self._refusals.clear()
        if self._acknowledged:
            self._set_fact("newest", _later(self._fact("newest"), self._acknowledged))
            self._set_fact("token", "")  # until this run or another one comes to its end
            self._acknowledged = ""
        self._waiting.clear()
        self._database.commit()
        self._written_at = time.monotonic()

    def _begin_transaction(self) -> None:
        """Let no other process write until the commit, so that what is read here stays true."""
        if not self._database.in_transaction:
            self._database.execute("BEGIN IMMEDIATE")

    def _number_of(self, source: str) -> int:
        if source not in self._sources:
            self._database.execute(_ADD_SOURCE, (source,))  # unless another process has
            self._database.commit()
            query = "SELECT number FROM sources WHERE path = ?"
            (self._sources[source],) = self._database.execute(query, (source,)).fetchone()
        return self._sources[source]

    def _fact(self, name: str) -> str:
        query = "SELECT value FROM facts WHERE name = ?"
        found = self._database.execute(query, (name,)).fetchone()
        return str(found[0]) if found else ""

    def _set_fact(self, name: str, value: str) -> None:
        self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))


def _later(known: str, token: str) -> str:
    """Return the token of the later write: another process may have noted one too."""
    if not known:
        return token
    before, after = Token.parse(known), Token.parse(token)
    return known if before.shares_history(after) and before.seq > after.seq else token
