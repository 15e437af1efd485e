"""Deletion by filter: a request in steps, each a page of the log and a transaction of its own."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cachetools import LRUCache

from mmesh.errors import CollectionNotFound
from mmesh.filters import Filter
from mmesh.values.tokens import Token
from services.index.log.answers import Answer, digest_of
from services.index.log.attributes import typed
from services.index.log.committer import Committer
from services.index.log.ledger import DeleteUnchanged
from services.index.log.log import Log
from services.index.log.rows import CollectionRow, Page, StoredCandidate
from services.index.point import Point
from services.index.segments.columns import Columns

PAGE_ROWS, PAGE_BYTES = 1000, 16 << 20
KEPT = 256
"""Requests of which it is remembered how far they came."""


class Place(NamedTuple):
    """How far a deletion came."""

    after: str
    """The last id that was looked at."""
    until_seq: int
    at: Point
    """A state of the log in which all up to there was done."""


Places = MutableMapping[tuple[int, str, str], Place]
"""By key of the collection, request id and digest; see `remembered_places`."""


def remembered_places() -> Places:
    """Return an LRU cache of places."""
    return LRUCache(KEPT)


@dataclass(frozen=True, slots=True)
class FilterDeletion:
    """Deletes the candidates for which a filter holds; the same request goes on where it was left.

    What was deleted stands in the log, so it matters not which process goes on with it, and each
    candidate is counted by the one step that deletes it. A process remembers how far it came, too,
    so that a request that is repeated ends, however little time each call has.
    """

    log: Log
    committer: Committer
    read: Callable[..., Awaitable[Any]]
    """Runs a call of the log on a thread."""
    on_step: Callable[[], None]
    """Called when something was written."""
    places: Places

    async def run(self, row: CollectionRow, condition: Filter, request_id: str) -> Answer:
        """Return the answer: how many were deleted in all, and the token of the last write.

        Raises:
            RequestIdReused: the request id was that of another request.
            CollectionNotFound: the collection was deleted meanwhile.
            HistoryLost: the log was restored meanwhile to an earlier state.
            InvalidFilter: it compares an attribute with a value of another type.
        """
        request_id = request_id or uuid.uuid4().hex
        wanted = typed(condition, row.attribute_types)  # what it means may change; the digest not
        digest = digest_of("delete_by_filter", repr(condition))
        answer: Answer | None = await self.read(self.log.answer, row.key, request_id, digest)
        if answer is not None and answer.is_final:
            return answer
        until_seq = row.seq if answer is None else answer.until_seq or 0
        key, place = (row.key, request_id, digest), Place("", until_seq, row.head)
        known = self.places.get(key)
        if known is not None and await self.read(self.log.holds, row, known.at):
            place = known
        is_last, until_seq = False, place.until_seq
        while not is_last:
            page, is_last = await self.read(self._page_after, row.name, place.after)
            seqs = await asyncio.to_thread(_held, page, wanted, until_seq)
            if seqs or is_last:
                now = await self.read(self.log.collection, row.name)
                if now.epoch != row.epoch:
                    raise CollectionNotFound(row.name)
                step = DeleteUnchanged(
                    row.name, seqs, request_id, digest, until_seq, is_last, now.head
                )
                written = Token.parse((await self.committer.write(step, len(seqs))).token)
                place = place._replace(at=Point(written.seq, written.stamp))
                self.on_step()
            if page:
                place = self.places[key] = place._replace(after=page[-1].id)
        self.places.pop(key, None)
        answer = await self.read(self.log.answer, row.key, request_id, digest)
        if answer is None:  # the steps went to another collection of this name
            raise CollectionNotFound(row.name)
        return answer

    def _page_after(self, name: str, after: str) -> Page:
        return self.log.page(name, after, PAGE_ROWS, PAGE_BYTES, parts=False)


def _held(page: Sequence[StoredCandidate], condition: Filter, until_seq: int) -> dict[str, int]:
    """Return those of a page for which the filter holds, by id, but for newer ones."""
    old = [stored for stored in page if stored.seq <= until_seq]
    holds = Columns.of(stored.attributes for stored in old).mask(condition)
    return {one.id: one.seq for one, held in zip(old, holds, strict=True) if held}
