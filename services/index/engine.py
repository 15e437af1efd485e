"""The index engine: writes go to the log, searches go to the views, the views follow the log."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Self, TypeVar

import numpy as np

from mmesh.candidates import Candidate
from mmesh.collections import Collection, CollectionSettings, SettingsChange
from mmesh.errors import (
    DimMismatch,
    FailedPrecondition,
    InvalidField,
    LogUnavailable,
    ModelMismatch,
)
from mmesh.filters import Filter, check_filter
from mmesh.search import Consistency
from mmesh.serving.deadline import Deadline
from mmesh.tokens import Token
from mmesh.vector_search import VectorSearch
from mmesh.vectors import FloatMatrix, pack, unit_rows
from services.index.build.tuning import check_factory
from services.index.config import IndexSettings
from services.index.description import ShardState, describe
from services.index.filter_deletion import FilterDeletion
from services.index.limits import check_candidates, check_depth, check_limit
from services.index.log.attributes import attribute_types_with, check_types
from services.index.log.committer import Committer
from services.index.log.ledger import Delete, Fill, Mirrored, Upsert
from services.index.log.log import Log
from services.index.log.rows import (
    CollectionRow,
    NewCandidate,
    StoredCandidate,
    attributes_to_json,
    candidate_of,
    parts_to_json,
)
from services.index.slots import slot_of, slots_of
from services.index.store.blobs import ContentBlobs
from services.index.store.objects import open_objects
from services.index.store.snapshot import Snapshots
from services.index.upkeep.maintainer import Maintainer
from services.index.upkeep.restorer import Restorer
from services.index.upkeep.scratch import Scratch
from services.index.view.follower import Follower
from services.index.view.memory import MemoryBudget
from services.index.view.searcher import PendingSearch, Searched, Searcher
from services.index.view.view import View

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
FRESH_SHARE = 0.9
"""Share of a search's time that may go by in waiting for a write."""
START_PAUSE_S = 1.0


class MirrorVectors(NamedTuple):
    """Rows (n, dim) for the mirror of a collection; zeros where its model encodes nothing."""

    rows: FloatMatrix
    model_fingerprint: str


@dataclass(frozen=True, slots=True)
class _Parts:
    """What an engine is made of once the log was reached."""

    log: Log
    blobs: ContentBlobs
    follower: Follower
    maintainer: Maintainer
    committer: Committer


class IndexEngine:
    """One shard of every collection; an async context manager that follows the log while open."""

    def __init__(self, settings: IndexSettings) -> None:
        self._settings = settings
        self.replica = uuid.uuid4().hex[:12]
        self.is_ready = False
        self._reader = ThreadPoolExecutor(2, "log-reader")
        self._preparer = ThreadPoolExecutor(2, "prepare")
        self._searcher = Searcher(
            settings.search_threads, settings.max_waiting_searches, settings.inline_s
        )
        self._stack = AsyncExitStack()
        self._parts: _Parts | None = None
        self._dropping: set[asyncio.Task[None]] = set()
        """Snapshots of deleted collections that are being removed."""

    async def __aenter__(self) -> Self:
        """Load the shard, from snapshots and the log, and begin to follow the log."""
        async with AsyncExitStack() as stack:
            log = await self._open_log()
            stack.callback(log.close)
            scratch = await self._open_scratch(stack)
            self._parts = parts = await self._make_parts(log, scratch)
            for part in (parts.follower, parts.maintainer, parts.committer):
                await stack.enter_async_context(part)
            await parts.follower.loaded()
            self._stack = stack.pop_all()
        self.is_ready = True
        return self

    async def _open_scratch(self, stack: AsyncExitStack) -> Scratch:
        """Return a folder that goes with the stack, also if the wait for it is cancelled."""
        opening = asyncio.ensure_future(asyncio.to_thread(Scratch, self._settings.scratch_dir))
        try:
            scratch = await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait([opening])
            if opening.exception() is None:
                await asyncio.to_thread(opening.result().close)
            raise
        stack.push_async_callback(asyncio.to_thread, scratch.close)
        return scratch

    async def _make_parts(self, log: Log, scratch: Scratch) -> _Parts:
        settings = self._settings
        objects = await asyncio.to_thread(open_objects, settings.blobs)
        snapshots = Snapshots(objects, keep=settings.snapshots_kept)
        slots, rows = slots_of(settings.shard, settings.shard_count), settings.seal_rows
        follower = Follower(
            log,
            slots,
            delta_rows=rows,
            poll_s=settings.poll_s,
            budget=MemoryBudget.of(settings.memory_limit_bytes),
            source=Restorer(
                snapshots, scratch, slots, delta_rows=rows, device=settings.search_device
            ),
        )
        return _Parts(
            log=log,
            blobs=ContentBlobs(objects),
            follower=follower,
            maintainer=Maintainer(settings, log, follower, snapshots, scratch),
            committer=Committer(log, settings.max_waiting_writes),
        )

    async def _open_log(self) -> Log:
        """Return the log; wait for its database as long as that takes."""
        while True:
            try:
                self._settings.data_dir.mkdir(parents=True, exist_ok=True)
                return await asyncio.to_thread(Log, self._settings.url)
            except LogUnavailable as error:
                logger.warning("waiting for the log", extra={"error": error.message})
                await asyncio.sleep(START_PAUSE_S)

    async def __aexit__(self, *_: object) -> None:
        await self._searcher.close()
        await asyncio.gather(*self._dropping, return_exceptions=True)
        for pool in (self._preparer, self._reader):
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
        check_factory(settings.index_factory, dim)
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
        check_factory(change.get("index_factory", ""), row.dim)
        update = self._open.log.update_collection
        row = await self._read(update, name, change, request_id)
        self._open.follower.look(row.name)
        return self._describe(row)

    async def get_collection(self, name: str) -> Collection:
        """Return the collection."""
        return self._describe(await self._read(self._open.log.collection, name))

    async def list_collections(self, after: str, limit: int) -> list[Collection]:
        """Return collections with names after `after`."""
        rows = await self._read(self._open.log.collections, after, limit)
        return [self._describe(row) for row in rows]

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
        rows = await self._prepare(collection, candidates, vectors, model_fingerprint)
        mirrored = None
        if mirror is not None:
            _check_count("mirror_vectors", mirror.rows, candidates)
            taken = await self._run(self._preparer, _mirror_rows, rows, mirror.rows)
            mirrored = Mirrored(taken, mirror.model_fingerprint)
        types = attribute_types_with(candidates)
        return await self._write(
            Upsert(collection, rows, types, request_id, model_fingerprint, mirrored)
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
        rows = await self._prepare(collection, candidates, vectors, model_fingerprint)
        types = attribute_types_with(candidates)
        return await self._write(Fill(collection, rows, types, request_id, model_fingerprint))

    async def _prepare(
        self,
        collection: str,
        candidates: Sequence[Candidate],
        vectors: FloatMatrix,
        model_fingerprint: str,
    ) -> list[NewCandidate]:
        row = await self._row_that_fits(collection, vectors.shape[1], model_fingerprint)
        _check_count("vectors", vectors, candidates)
        check_candidates(candidates, row.settings.limits)
        return await self._run(self._preparer, self._new_rows, candidates, vectors)

    async def _write(self, write: Upsert) -> str:
        written = await self._open.committer.write(write, len(write.candidates))
        self._open.follower.look(write.collection)
        return written.token

    def _new_rows(
        self, candidates: Sequence[Candidate], vectors: FloatMatrix
    ) -> list[NewCandidate]:
        unit = unit_rows(vectors)
        return [self._new_row(c, v) for c, v in zip(candidates, unit, strict=True)]

    def _new_row(self, candidate: Candidate, vector: FloatMatrix) -> NewCandidate:
        return NewCandidate(
            candidate.id,
            slot_of(candidate.id),
            candidate.content.modality,
            attributes_to_json(candidate.attributes),
            parts_to_json(candidate.content, self._open.blobs),
            pack(vector),
        )

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
        self._check_filter(condition, row)
        look = partial(parts.follower.look, row.name)
        deletion = FilterDeletion(parts.log, parts.committer, self._read, look)
        answer = await deletion.run(row, condition, request_id)
        return answer.count, answer.text

    async def get(self, collection: str, ids: Sequence[str]) -> list[Candidate]:
        """Return those of `ids` that exist, in their order, with their pictures."""

        def read() -> list[Candidate]:
            rows = {stored.id: stored for stored in self._open.log.get(collection, ids)}
            return [candidate_of(rows[i], self._open.blobs) for i in ids if i in rows]

        return await self._read(read)

    async def page(
        self, collection: str, after: str, limit: int, *, vectors: bool = False
    ) -> tuple[CollectionRow, list[StoredCandidate]]:
        """Return `limit` candidates with ids after `after`, as they are stored."""
        row = await self._read(self._open.log.collection, collection)

        def read() -> list[StoredCandidate]:
            return self._open.log.page(row.name, after, limit, vectors=vectors)

        return row, await self._read(read)

    async def candidate(self, stored: StoredCandidate, *, images: bool) -> Candidate:
        """Return a stored candidate as users know it, with or without the bytes of pictures."""
        return await self._read(candidate_of, stored, self._open.blobs if images else None)

    # -- search

    async def search(self, order: VectorSearch, deadline: Deadline) -> Searched:
        """Search this shard.

        Raises:
            StaleReplica: the state asked for was not reached in time.
            Overloaded: too many searches wait already.
            MemoryFull: this shard refused to load the collection.
        """
        token = Token.parse(order.token) if order.consistency is Consistency.SESSION else None
        row = await self._row_for_search(order, token)
        check_limit(order.limit, row.settings.limits)
        if order.filter is not None:
            self._check_filter(order.filter, row)
        queries = unit_rows(order.queries, "queries")
        wanted = row.seq if order.consistency is Consistency.STRONG else 0
        if token is not None:
            wanted = _seq_of(token, row)
        view = await self._open.follower.wait_for(row, wanted, deadline.share(FRESH_SHARE))
        return await self._searcher.search(
            PendingSearch(view, queries, order.modalities, order.limit, order.filter)
        )

    def _check_filter(self, condition: Filter, row: CollectionRow) -> None:
        check_filter(condition)
        check_depth(condition, row.settings.limits)
        check_types(condition, row.attribute_types)

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
        row = await self._read(self._open.log.collection, collection)
        return row, await self._open.follower.wait_for(row, row.seq, deadline)

    # -- threads

    @property
    def _open(self) -> _Parts:
        """The parts.

        Raises:
            LogUnavailable: its database was not reached yet, so there are none.
        """
        if self._parts is None:
            raise LogUnavailable("this process is starting and has not reached the log yet")
        return self._parts

    async def _read(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await self._run(self._reader, work, *arguments)

    async def _run(
        self, pool: ThreadPoolExecutor, work: Callable[..., Result], *arguments: object
    ) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)


def _check_count(path: str, vectors: FloatMatrix, candidates: Sequence[Candidate]) -> None:
    if len(vectors) != len(candidates):
        raise InvalidField(path, f"has {len(vectors)} rows for {len(candidates)} candidates")


def _mirror_rows(rows: Sequence[NewCandidate], vectors: FloatMatrix) -> list[NewCandidate]:
    """Return the rows with the vectors of another model, without those that have none."""
    held = np.flatnonzero(vectors.any(axis=1))
    unit = unit_rows(vectors[held], "mirror_vectors")
    return [replace(rows[n], vector=pack(v)) for n, v in zip(held.tolist(), unit, strict=True)]


def check_model(row: CollectionRow, dim: int, model_fingerprint: str | None) -> None:
    """Raise `DimMismatch` or `ModelMismatch` unless vectors, of any model if None, fit."""
    if dim != row.dim:
        raise DimMismatch(
            f"vectors are {dim} wide; collection {row.name!r} has {row.dim}",
            {"collection": row.name, "dim": str(row.dim)},
        )
    if model_fingerprint not in (None, row.model_fingerprint):
        raise ModelMismatch(
            f"vectors are of model {model_fingerprint!r}; collection {row.name!r} is for "
            f"{row.model_fingerprint!r}. Ingest into a new collection, or serve that model",
            {"collection": row.name, "model_fingerprint": row.model_fingerprint},
        )


def _seq_of(token: Token, row: CollectionRow) -> int:
    """Return the sequence that the token names; that of the row if it is of another collection.

    The alias may have moved from that one to its mirror, which has the same writes.
    """
    return token.seq if token.epoch == row.epoch else row.seq
