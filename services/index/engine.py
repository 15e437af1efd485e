"""The index engine: writes go to the log, searches go to the views, the views follow the log."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple, Self, TypeVar

from mmesh.candidates import Candidate
from mmesh.collections import Collection, CollectionSettings, SettingsChange
from mmesh.errors import (
    FailedPrecondition,
    MmeshError,
    Unavailable,
)
from mmesh.filters import Filter, check_filter
from mmesh.search import Consistency
from mmesh.serving.deadline import Deadline
from mmesh.values.tokens import Token
from mmesh.vector_search import VectorSearch
from mmesh.vectors import FloatMatrix, unit_rows
from services.index import metrics
from services.index.build.trial import Trials
from services.index.config import IndexSettings
from services.index.description import ShardState, describe
from services.index.filter_deletion import FilterDeletion, remembered_places
from services.index.filter_reading import Reading, read_filter
from services.index.freshness import Freshness
from services.index.limits import check_candidates, check_depth, check_limit
from services.index.log.attributes import summaries, type_check
from services.index.log.ledger import Delete, Fill, Mirrored, Upsert
from services.index.log.rows import (
    CollectionRow,
    NewCandidate,
    Page,
    StoredCandidate,
    candidate_of,
    pictures_of,
)
from services.index.new_rows import check_count, check_model, mirror_rows, new_rows
from services.index.opening import Parts, open_parts
from services.index.store.garbage import COMMIT_S
from services.index.store.together import AT_A_TIME, filling, together
from services.index.view.searcher import PendingSearch, Searched
from services.index.view.view import View

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
FRESH_SHARE = 0.9
"""Share of a search's time that may go by in waiting for a write."""
FEW_IDS = 16
"""Candidates that are read without asking first how long their texts are."""


class MirrorVectors(NamedTuple):
    """Rows (n, dim) for the mirror of a collection; zeros where its model encodes nothing."""

    rows: FloatMatrix
    model_fingerprint: str


class IndexEngine:
    """One shard of every collection; an async context manager that follows the log while open."""

    def __init__(self, settings: IndexSettings) -> None:
        self._settings = settings
        self.replica = uuid.uuid4().hex[:12]
        self.is_ready = False
        self._reader = ThreadPoolExecutor(2, "log-reader")
        self._content_reader = ThreadPoolExecutor(2, "content-reader")
        """Of its own: these may wait for an object store, and what only asks the log must not."""
        self._preparer = ThreadPoolExecutor(2, "prepare")
        self._storing = ThreadPoolExecutor(AT_A_TIME, "store-pictures")
        self._pictures = ThreadPoolExecutor(AT_A_TIME, "read-pictures")
        """Of its own, so that reading waits for no ingest."""
        self._copier = ThreadPoolExecutor(1, "copy")
        self._copies: set[threading.Event] = set()
        """Of each copy that is made or waits for its turn: set, nobody wants it any more."""
        self._trials = Trials()
        self._deletions = remembered_places()
        self._stack = AsyncExitStack()
        self._parts: Parts | None = None
        self._why_closed: MmeshError = Unavailable(
            "this process is starting and has not reached the log yet"
        )
        """Why there are no parts yet."""
        self._dropping: set[asyncio.Task[None]] = set()
        """Snapshots of deleted collections that are being removed."""

    async def __aenter__(self) -> Self:
        """Load the shard, from snapshots and the log, and begin to follow the log."""
        async with AsyncExitStack() as stack:
            self._parts = parts = await open_parts(self._settings, stack, self._note_waiting)
            for part in (parts.follower, parts.maintainer, parts.committer):
                await stack.enter_async_context(part)
            await parts.follower.loaded()
            self._stack = stack.pop_all()
        self.is_ready = True
        return self

    def _note_waiting(self, error: MmeshError) -> None:
        self._why_closed = error

    async def __aexit__(self, *_: object) -> None:
        for unwanted in self._copies:
            unwanted.set()
        if self._parts is not None:
            await self._parts.searcher.close()
        await asyncio.gather(*self._dropping, return_exceptions=True)
        readers = self._reader, self._content_reader, self._pictures
        for pool in (self._preparer, *readers, self._storing, self._copier):
            await asyncio.to_thread(pool.shutdown)
        await self._stack.aclose()

    # -- collections

    async def create_collection(
        self,
        name: str,
        dim: int,
        model_fingerprint: str,
        settings: CollectionSettings,
        request_id: str,
    ) -> Collection:
        """Create the collection, or return it if it exists for the same model."""
        await self._trials.check(settings.index_factory, dim)
        row = await self._read(
            self._open.log.create_collection, name, dim, model_fingerprint, settings, request_id
        )
        self._open.follower.look()
        return self._describe(row)

    async def update_collection(
        self, name: str, change: SettingsChange, request_id: str
    ) -> Collection:
        """Change some of the collection's settings."""
        row = await self._read(self._open.log.collection, name)
        await self._trials.check(change.get("index_factory", ""), row.dim)
        update = self._open.log.update_collection
        row = await self._read(update, name, change, request_id)
        self._open.follower.look(row.name)
        return self._describe(row)

    async def get_collection(self, name: str, *, with_attributes: bool = False) -> Collection:
        """Return the collection."""
        row = await self._read(self._open.log.collection, name)
        if not with_attributes:
            return self._describe(row)
        counts = await self._read(self._open.log.attributes, row.key)
        return replace(self._describe(row), attributes=summaries(counts))

    async def list_collections(self, after: str, limit: int) -> list[Collection]:
        """Return collections with names after `after`."""
        rows = await self._read(self._open.log.collections, after, limit)
        return [self._describe(row) for row in rows]

    async def copy_collection(
        self, source: str, name: str, request_id: str, deadline: Deadline
    ) -> Collection:
        """Return a read-only copy of what the log has of a collection now.

        A process makes one at a time: each is a transaction for as long as it takes. It ends with
        its caller, and with the engine.

        Raises:
            Unavailable: the engine ends.
        """
        copy, unwanted = self._open.log.copy_collection, threading.Event()
        check = partial(_check_copy, deadline, unwanted)
        self._copies.add(unwanted)
        try:
            row = await self._run(self._copier, copy, source, name, request_id, check)
        finally:
            unwanted.set()  # the caller may have been cancelled, which no thread hears of
            self._copies.discard(unwanted)
        self._open.follower.look()
        return self._describe(row)

    async def delete_collection(self, name: str, request_id: str) -> int:
        """Delete the collection and return how many candidates it had.

        Its snapshots go afterwards: there may be many, in a store that is slow.
        """
        gone = await self._read(self._open.log.delete_collection, name, request_id)
        self._open.follower.look()
        dropping = asyncio.create_task(self._open.maintainer.drop_snapshots(gone.epoch))
        self._dropping.add(dropping)
        dropping.add_done_callback(self._note_dropped)
        return gone.candidates

    def _note_dropped(self, dropping: asyncio.Task[None]) -> None:
        self._dropping.discard(dropping)
        if not dropping.cancelled() and (defect := dropping.exception()) is not None:
            logger.error("snapshots could not be removed", exc_info=defect)

    async def set_alias(self, alias: str, collection: str, request_id: str) -> str:
        """Let `alias` name the collection; return what it named before."""
        previous = await self._read(self._open.log.set_alias, alias, collection, request_id)
        self._open.follower.look()
        return previous

    async def delete_alias(self, alias: str, request_id: str) -> None:
        """Delete the alias."""
        await self._read(self._open.log.delete_alias, alias, request_id)
        self._open.follower.look()

    def _describe(self, row: CollectionRow) -> Collection:
        return Collection(
            row.name, row.dim, row.model_fingerprint, row.counts, self._settings.shard_count,
            row.create_time, row.token, row.settings, row.aliases,
        )  # fmt: skip

    # -- candidates

    async def upsert(
        self,
        collection: str,
        candidates: Sequence[Candidate],
        vectors: FloatMatrix,
        model_fingerprint: str,
        request_id: str,
        mirror: MirrorVectors | None = None,
    ) -> str:
        """Store candidates durably, all or none, and return the token of the write."""
        async with _committing():
            rows = await self._prepare(collection, candidates, vectors, model_fingerprint)
            mirrored = None
            if mirror is not None:
                check_count("mirror_vectors", mirror.rows, candidates)
                taken = await self._run(self._preparer, mirror_rows, rows, mirror.rows)
                mirrored = Mirrored(taken, mirror.model_fingerprint)
            check = type_check(candidates)
            return await self._write(
                Upsert(collection, rows, check, request_id, model_fingerprint, mirrored)
            )

    async def fill(
        self,
        collection: str,
        candidates: Sequence[Candidate],
        vectors: FloatMatrix,
        model_fingerprint: str,
        request_id: str,
    ) -> str:
        """Store those candidates that the collection lacks and its mirror has; return the token."""
        async with _committing():
            rows = await self._prepare(collection, candidates, vectors, model_fingerprint)
            check = type_check(candidates)
            return await self._write(Fill(collection, rows, check, request_id, model_fingerprint))

    async def _prepare(
        self,
        collection: str,
        candidates: Sequence[Candidate],
        vectors: FloatMatrix,
        model_fingerprint: str,
    ) -> list[NewCandidate]:
        row = await self._row_that_fits(collection, vectors.shape[1], model_fingerprint)
        check_count("vectors", vectors, candidates)
        check_candidates(candidates, row.settings.limits)
        blobs = self._open.blobs
        return await self._run(self._preparer, new_rows, candidates, vectors, blobs, self._storing)

    async def _write(self, write: Upsert) -> str:
        written = await self._open.committer.write(write, len(write.candidates))
        self._open.follower.look(write.collection)
        return written.token

    async def delete(self, collection: str, ids: Sequence[str], request_id: str) -> tuple[int, str]:
        """Delete candidates durably; return how many there were, and the token."""
        written = await self._open.committer.write(Delete(collection, ids, request_id), len(ids))
        self._open.follower.look(collection)
        return written.count, written.token

    async def delete_by_filter(
        self, collection: str, condition: Filter, request_id: str
    ) -> tuple[int, str]:
        """Delete those for which the filter holds now; return how many, and the last token."""
        parts = self._open
        row = await self._read(parts.log.collection, collection)
        _check_filter(condition, row)
        look = partial(parts.follower.look, row.name)
        deletion = FilterDeletion(parts.log, parts.committer, self._read, look, self._deletions)
        answer = await deletion.run(row, condition, request_id)
        return answer.count, answer.text

    async def get(
        self, collection: str, ids: Sequence[str], most_bytes: int = 0, *, images: bool = True
    ) -> tuple[list[Candidate], list[str]]:
        """Return those of `ids` that exist, in their order, and the ids of those that were left.

        With `most_bytes` as many as fit into these, and one at least.
        """

        def read() -> tuple[list[Candidate], list[str]]:
            ids_that_fit, left = self._that_fit(collection, ids, most_bytes)
            rows = {stored.id: stored for stored in self._open.log.get(collection, ids_that_fit)}
            wanted = [rows[i] for i in ids_that_fit if i in rows]
            whole = (
                partial(self._whole, collection) if images else partial(candidate_of, blobs=None)
            )
            read_some = partial(
                together, self._pictures, whole, waits=_has_picture if images else _never
            )
            found = filling(read_some, wanted, attrgetter("size"), most_bytes or sys.maxsize)
            return found, [one.id for one in wanted[len(found) :]] + left

        return await self._run(self._content_reader if images else self._reader, read)

    def _that_fit(
        self, collection: str, ids: Sequence[str], most_bytes: int
    ) -> tuple[Sequence[str], list[str]]:
        """Divide ids into the first ones, whose texts fit into memory, and those that are left."""
        if len(ids) <= FEW_IDS or not most_bytes:
            return ids, []
        sizes = self._open.log.sizes(collection, ids)
        known = [candidate_id for candidate_id in ids if candidate_id in sizes]
        filled = list(accumulate(sizes[candidate_id] for candidate_id in known))
        count = max(1, bisect_right(filled, most_bytes))
        return known[:count], known[count:]

    def _whole(self, collection: str, stored: StoredCandidate) -> Candidate:
        """Return a candidate with its pictures.

        Those of a row that was replaced meanwhile may be gone: then it is read once more.
        """
        found = candidate_of(stored, self._open.blobs)
        if found.problem is None:
            return found
        rows = self._open.log.get(collection, [stored.id])
        if rows and rows[0] != stored:
            found = candidate_of(rows[0], self._open.blobs)
        if rows and found.problem is not None:
            metrics.damaged_total.labels("picture").inc()
        return found

    async def page(
        self,
        collection: str,
        after: str,
        limit: int,
        most_bytes: int = sys.maxsize,
        *,
        vectors: bool = False,
    ) -> tuple[CollectionRow, Page]:
        """Return candidates with ids after `after`, as they are stored: as many as `Log.page`."""
        row = await self._read(self._open.log.collection, collection)

        def read() -> Page:
            return self._open.log.page(row.name, after, limit, most_bytes, vectors=vectors)

        return row, await self._read(read)

    async def candidate(
        self, collection: str, stored: StoredCandidate, *, images: bool
    ) -> Candidate:
        """Return a stored candidate as users know it, with or without the bytes of pictures."""
        if images:
            return await self._run(self._content_reader, self._whole, collection, stored)
        return candidate_of(stored, None)

    # -- search

    async def search(self, order: VectorSearch, deadline: Deadline) -> Searched:
        """Search this shard.

        Raises:
            StaleReplica: the state asked for was not reached in time.
            HistoryLost: the log has lost the write that the token names.
            Overloaded: too many searches wait already.
            MemoryFull: this shard refused to load the collection.
        """
        since = time.monotonic()
        token = Token.parse(order.token) if order.consistency is Consistency.SESSION else None
        row = await self._row_for_search(order, token)
        check_limit(order.limit, row.settings.limits)
        if order.filter is not None:
            _check_filter(order.filter, row)
        queries = unit_rows(order.queries, "queries")
        view = await self._view_for(row, order, token, since, deadline)
        reading = Reading()
        if order.filter is not None:
            wanted = row.seq if order.consistency is Consistency.STRONG else 0
            reading = await self._read_filter(order.filter, row, token.seq if token else wanted)
        found = await self._open.searcher.search(
            PendingSearch(
                view,
                queries,
                order.modalities,
                order.limit,
                reading.condition,
                row.settings.read_only,
            )
        )
        return found._replace(unknown=reading.unknown) if reading.unknown else found

    async def _read_filter(self, condition: Filter, row: CollectionRow, seq: int) -> Reading:
        """Return what a filter means for a view that reflects `seq`."""
        newest = partial(self._read, self._open.log.collection, row.name)
        seen = self._open.follower.row(row.name)
        if seen is None or seen.epoch != row.epoch:
            seen = row
        return await read_filter(condition, seen if seen.seq >= seq else await newest(), newest)

    async def _row_for_search(self, order: VectorSearch, token: Token | None) -> CollectionRow:
        dim, model_fingerprint = order.queries.shape[1], order.model_fingerprint or None
        if order.consistency is not Consistency.STRONG:
            row = await self._row_that_fits(order.collection, dim, model_fingerprint)
            if token is None or token.epoch == row.epoch:
                return row
        self._open.follower.look(order.collection)
        row = await self._read(self._open.log.collection, order.collection)
        check_model(row, dim, model_fingerprint)
        return row

    async def _view_for(
        self,
        row: CollectionRow,
        order: VectorSearch,
        token: Token | None,
        since: float,
        deadline: Deadline,
    ) -> View:
        freshness, deadline = self._freshness, deadline.share(FRESH_SHARE)
        if order.consistency is Consistency.STRONG:
            return await freshness.head(row, since, deadline)
        if token is not None:
            return await freshness.after(row, token, deadline)
        return await freshness.any(row, deadline)

    @property
    def _freshness(self) -> Freshness:
        return Freshness(self._open.follower, self._open.log, self._read)

    async def _row_that_fits(
        self, collection: str, dim: int, model_fingerprint: str | None
    ) -> CollectionRow:
        """Return the collection as last seen, or as the log has it where vectors do not fit it."""
        row = await self._row_of(collection)
        try:
            check_model(row, dim, model_fingerprint)
        except FailedPrecondition:  # the name may stand for another collection by now
            row = await self._read(self._open.log.collection, collection)
            check_model(row, dim, model_fingerprint)
        return row

    async def _row_of(self, collection: str) -> CollectionRow:
        """Return the collection as last seen, or from the log when it was not seen yet."""
        known = self._open.follower.row(collection)
        if known is None:
            known = await self._read(self._open.log.collection, collection)
            self._open.follower.look(collection)
        return known

    # -- the shard

    def describe_shard(self) -> ShardState:
        """Return what this process holds and how far it is."""
        return describe(self._open.follower)

    async def compact(self, collection: str, deadline: Deadline) -> ShardState:
        """Merge what this process holds, up to now, into one segment of each modality."""
        row, view = await self._fresh_view(collection, deadline)
        await self._open.maintainer.compact(view, row)
        return self.describe_shard().only(row.name)

    async def snapshot(self, collection: str, deadline: Deadline) -> tuple[int, str]:
        """Store a snapshot of a collection; return its number and the token of its state."""
        _, view = await self._fresh_view(collection, deadline)
        return await self._open.maintainer.snapshot(view)

    async def _fresh_view(self, collection: str, deadline: Deadline) -> tuple[CollectionRow, View]:
        """Return the collection as the log has it, and its view once that has caught up."""
        since = time.monotonic()
        row = await self._read(self._open.log.collection, collection)
        return row, await self._freshness.head(row, since, deadline)

    # -- threads

    @property
    def _open(self) -> Parts:
        """The parts.

        Raises:
            LogUnavailable: its database was not reached yet, so there are none.
            DataLoss: its file is damaged as a whole.
        """
        if self._parts is None:
            raise self._why_closed.with_traceback(None)
        return self._parts

    async def _read(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await self._run(self._reader, work, *arguments)

    async def _run(
        self, pool: ThreadPoolExecutor, work: Callable[..., Result], *arguments: object
    ) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)


def _has_picture(stored: StoredCandidate) -> bool:
    return bool(pictures_of(stored.parts))


def _never(stored: StoredCandidate) -> bool:
    return False


def _check_filter(condition: Filter, row: CollectionRow) -> None:
    check_filter(condition)
    check_depth(condition, row.settings.limits)


def _check_copy(deadline: Deadline, unwanted: threading.Event) -> None:
    deadline.check()
    if unwanted.is_set():
        raise Unavailable("this process ends before the copy is complete; make it again")


def _committing() -> asyncio.Timeout:
    """Bound the time from storing pictures to naming them; half of it is left for the commit."""
    return asyncio.timeout(COMMIT_S / 2)
