"""Items into a collection: what changed is sent, and a report says what became of all."""

from __future__ import annotations

import sqlite3
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmesh.candidates import NOTICE_IDS, Embedded
from mmesh.cli.files.foresight import Foresight
from mmesh.cli.files.journal import Journal, Seen
from mmesh.cli.files.sources.items import (
    Given,
    Item,
    PassedOver,
    Unreadable,
    digest_of,
    reason_of,
)
from mmesh.cli.files.sources.notes import Notes, Topic
from mmesh.cli.output.ingest_report import Outcome, tell
from mmesh.cli.output.tables import errors
from mmesh.errors import (
    CollectionNotFound,
    CollectionReadOnly,
    HistoryLost,
    MmeshError,
    StaleReplica,
)
from mmesh.search import Rerank
from mmesh.values.tokens import Token
from mmesh.vectors import DataType

if TYPE_CHECKING:
    from mmesh.candidates import Candidate, WriteReport
    from mmesh.client import Client
    from mmesh.collections import Collection
    from mmesh.ingest import Progress

_PAGE = 1000
"""Ids that are listed or deleted in a call."""


@dataclass(frozen=True, slots=True)
class Source:
    """What there is to put in."""

    items: Iterator[Given]
    """The same every time."""
    total: int | None
    names: tuple[str, ...]
    """Sources of the items, by whose absence an item is gone."""
    notes: Notes = field(default_factory=Notes)
    model_fingerprint: str = ""
    """Model of the vectors of `Embedded` rows."""
    data_type: DataType = DataType.FLOAT32


@dataclass(frozen=True, slots=True)
class Manner:
    """How it is put in."""

    batch_size: int = 64
    restart: bool = False
    """Send everything, whatever is stored."""
    sync: bool = False
    """Remove what is gone from the sources."""
    dry_run: bool = False
    """Only say what would be done."""
    report: Path | None = None
    """Where all is written that the screen has no room for."""
    has_journal: bool = True


def open_collection(client: Client, name: str) -> Collection:
    """Return the collection of this name or alias, made if there is none."""
    try:
        return client.get_collection(name)
    except CollectionNotFound:
        return client.create_collection(name)


def find_collection(client: Client, name: str) -> Collection | None:
    """Return the collection of this name or alias, or None."""
    try:
        return client.get_collection(name)
    except CollectionNotFound:
        return None


def load(
    client: Client, collection: Collection | None, address: str, source: Source, manner: Manner
) -> None:
    """Put in what is not in yet, tell what became of it, and exit with 1 if any was refused.

    Without a collection, which is so in a dry run only, all is new.
    """
    try:
        outcome = _loaded(client, collection, address, source, manner)
    except sqlite3.Error as error:
        raise click.ClickException(
            f"the journal cannot be written: {error}; once that is mended, the same command goes on"
        ) from None
    tell(outcome, manner.report)
    sys.exit(1 if outcome.is_bad else 0)


def _loaded(
    client: Client, collection: Collection | None, address: str, source: Source, manner: Manner
) -> Outcome:
    with _journal(collection, address, manner) as journal:
        loading = Loading(journal, source, manner, collection)
        if collection is not None:
            _check_journal(client, collection, journal, manner)
        try:
            if manner.dry_run or collection is None:
                loading.pretend(collection)
            else:
                loading.send(client, collection.name)
                loading.remove(client, collection.name)
                journal.finish(loading.settled_token())
        except KeyboardInterrupt:
            errors().print("interrupted; the same command goes on from here")
            raise
        return loading.outcome()


def _journal(collection: Collection | None, address: str, manner: Manner) -> Journal:
    if collection is None or not manner.has_journal:
        return Journal(None, "")
    return Journal.of(collection, address, dry=manner.dry_run)


def _check_journal(
    client: Client, collection: Collection, journal: Journal, manner: Manner
) -> None:
    """Make sure that what the journal takes for stored is in the collection."""
    stored = journal.stored
    if not stored:
        return
    if not journal.agrees_with(collection.token):
        stored -= journal.keep_only(_ids_in(client, collection.name))
        if _has_lost_writes(client, collection, journal.newest, manner):
            journal.distrust()
            errors().print(
                "the collection lost what was written last, as after a restore: "
                "nothing is taken for unchanged"
            )
            return
    if stored:
        errors().print(f"going on after {stored} candidates; --restart sends all again")


def _has_lost_writes(client: Client, collection: Collection, newest: str, manner: Manner) -> bool:
    """Tell whether the log lost the newest write of an earlier ingest, so maybe others before it.

    Only a search says so. Another write may have got its number since, so numbers do not tell.
    """
    if not newest:
        return False
    try:
        client.search(collection.name, "lost?", limit=1, rerank=Rerank(0), token=newest)
    except HistoryLost:
        return True
    except StaleReplica:  # the log has the write, and this shard does not yet
        return False
    except MmeshError as error:
        if manner.restart:
            return True
        raise click.ClickException(
            "it is not known whether the collection still has what was stored: "
            f"{error.message}; --restart sends all again"
        ) from None
    return False


def _ids_in(client: Client, collection: str) -> Iterator[str]:
    token = ""
    while True:
        page = client.list_candidates(collection, page_size=_PAGE, page_token=token)
        yield from (one.id for one in page.candidates)
        if not (token := page.next_token):
            return


class Loading:
    """One ingest under way: which items are sent, which of them are settled, what is refused.

    `collection` is as it was before; None where there is none, in a dry run.
    """

    def __init__(
        self, journal: Journal, source: Source, manner: Manner, collection: Collection | None
    ) -> None:
        self._journal, self._source, self._manner = journal, source, manner
        token = collection.token if collection else ""
        self._token_before = self._token = token  # and of the last write that is known
        self._foresight = (
            Foresight(collection, source.model_fingerprint) if manner.dry_run else None
        )
        self._foreseen: list[tuple[str, str, str]] = []
        self._deleted = 0
        self._sent: deque[tuple[Item, bytes]] = deque()
        self._settled = 0
        self._refused: dict[int, MmeshError] = {}
        self._unreadable: list[Unreadable] = []
        self._unchanged = self._new = self._changed = 0
        self._alive: set[str] = set()  # sources that gave an item
        self._removed: list[str] = []
        self._report: WriteReport | None = None

    # -- sending

    def send(self, client: Client, collection: str) -> None:
        """Send what is new or changed."""
        from mmesh.cli.output.progress import progress_bar

        with progress_bar() as bar:
            task = bar.add_task("ingesting", total=self._source.total)

            def note(progress: Progress) -> None:
                self._settle(progress)
                done = progress.stored + progress.rejected + self._unchanged
                bar.update(task, completed=done + len(self._unreadable))

            self._report = client.ingest(
                collection,
                self._due(),
                model_fingerprint=self._source.model_fingerprint,
                data_type=self._source.data_type,
                batch_size=self._manner.batch_size,
                notice_ids=sys.maxsize if self._manner.report else NOTICE_IDS,
                on_progress=note,
            )
        self._token = self._report.token or self._token

    def pretend(self, collection: Collection | None) -> None:
        """Read everything and send nothing.

        Raises:
            CollectionReadOnly: something would have to be written to a collection that is.
        """
        for _ in self._due():
            self._sent.clear()
        writes = self._new or self._changed or (self._manner.sync and self._removable)
        if writes and collection is not None and collection.settings.read_only:
            raise CollectionReadOnly(collection.name)

    def _due(self) -> Iterator[Candidate | Embedded]:
        """Yield what must be sent."""
        for item in self._source.items:
            if not isinstance(item, Item):
                self._note_other(item)
                continue
            self._alive.add(item.source)
            seen = self._journal.look(item)
            if seen is Seen.AGAIN:
                self._source.notes.add(Topic.REPEATED, "the last one stays", item.id)
            if seen is Seen.SAME and not self._manner.restart:
                self._unchanged += 1
                continue
            if (found := self._made(item)) is None:
                continue
            made, digest = found
            is_stored = self._journal.is_stored_as(item, digest)
            if is_stored and not self._manner.restart:
                self._unchanged += 1
                continue
            if self._foresees_refusal(item, made):
                continue
            if seen is Seen.MOVED and not is_stored:
                self._source.notes.add(Topic.MOVED, "it had other content there", item.id)
            self._new += seen is Seen.NEW
            self._changed += seen is not Seen.NEW
            self._sent.append((item, digest))
            yield made

    def _made(self, item: Item) -> tuple[Candidate | Embedded, bytes] | None:
        """Return the candidate of an item and its digest; None when it is refused."""
        try:
            made = item.make()
            return made, digest_of(made)
        except Exception as error:  # whatever an item does is a refusal of that item
            self._unreadable.append(Unreadable(item.id, reason_of(error), hides=False))
            return None

    def _foresees_refusal(self, item: Item, made: Candidate | Embedded) -> bool:
        """Tell whether a dry run knows that the mesh refuses an item; then it is noted."""
        if self._foresight is None:
            return False
        found = self._foresight.refusal_of(made)
        if found is None and (before := self._journal.refusal(item)):
            reason, message = before
            found = reason, f"{message} (as the mesh said before)"
        if found is not None:
            self._foreseen.append((item.id, *found))
        return found is not None

    def _note_other(self, one: Unreadable | PassedOver) -> None:
        if isinstance(one, Unreadable):
            self._unreadable.append(one)
        if isinstance(one, PassedOver) or not one.hides:
            self._journal.see(one.id, one.source)

    def _settle(self, progress: Progress) -> None:
        """Note as stored what is acknowledged and was not refused."""
        self._journal.acknowledge(progress.token)
        self._refused.update((one.number, one.error) for one in progress.refused)
        while self._settled < progress.settled:
            item, digest = self._sent.popleft()
            if error := self._refused.pop(self._settled, None):
                self._journal.refuse(item, error.reason, error.message)
            else:
                self._journal.store(item, digest)
            self._settled += 1

    # -- removing

    def _gone(self) -> list[str]:
        """Return what is gone from the sources that can be read."""
        return self._journal.gone(name for name in self._source.names if name in self._alive)

    @property
    def _removable(self) -> list[str]:
        return [] if self._obstacle else self._gone()

    @property
    def _obstacle(self) -> str:
        """Why nothing may be removed; empty when it may."""
        hidden = sum(one.hides for one in self._unreadable)
        if hidden:
            return f"{hidden} rows or files cannot be read, so what is gone is not known"
        empty = [name for name in self._source.names if name not in self._alive]
        if empty and self._journal.gone(empty):
            return f"{', '.join(empty)} has nothing at all; is it the right place?"
        return ""

    def remove(self, client: Client, collection: str) -> None:
        """Remove what is gone, if that is wanted and known."""
        if not self._manner.sync:
            return
        self._removed = self._removable
        for start in range(0, len(self._removed), _PAGE):
            ids = self._removed[start : start + _PAGE]
            deleted, token = client.delete_candidates(collection, ids)
            self._journal.forget(ids)
            self._deleted += deleted
            self._token = token or self._token

    def settled_token(self) -> str:
        """Return the token of the state that the journal tells of; empty where that is in doubt.

        Each candidate that is stored or deleted takes one number. Where more were taken, somebody
        else wrote meanwhile, and may have deleted what this ingest took for stored.
        """
        before, after = Token.parse(self._token_before), Token.parse(self._token)
        stored, again = (self._report.stored, self._report.duplicates) if self._report else (0, 0)
        is_alone = after.seq - before.seq == stored + self._deleted and not again
        return self._token if is_alone and before.shares_history(after) else ""

    # -- telling

    def outcome(self) -> Outcome:
        """Return what became of everything."""
        notes = self._source.notes.lines()
        refused = [(u.id, "UNREADABLE", u.reason) for u in self._unreadable]
        refused += self._foreseen
        if self._report is not None:
            refused += [(r.id, r.error.reason, r.error.message) for r in self._report.rejected]
        return Outcome(
            stored=self._report.stored if self._report else self._new + self._changed,
            new=self._new,
            changed=self._changed,
            unchanged=self._unchanged,
            refused=refused,
            removed=self._removed,
            gone=[] if self._removed else self._gone(),
            notices=self._report.notices if self._report else (),
            notes=[(n.topic, n.count, n.what, n.where, n.places) for n in notes],
            dry_run=self._manner.dry_run,
            sync=self._manner.sync,
            obstacle=self._obstacle if self._manner.sync else "",
        )
