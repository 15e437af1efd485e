"""The index engine: writes go to the log, searches go to the view, the view follows the log."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self, TypeVar

import faiss

from mmesh.candidates import Candidate, Collection, Consistency
from mmesh.content import Modality
from mmesh.errors import (
    CollectionNotFound,
    DimMismatch,
    InvalidField,
    ModelMismatch,
    Overloaded,
    StaleReplica,
)
from mmesh.filters import Filter, check_filter
from mmesh.serving.deadline import Deadline
from mmesh.vectors import FloatMatrix, pack, unit_rows
from services.index import metrics
from services.index.attributes import attribute_types_with, check_types
from services.index.blobs import LocalBlobs
from services.index.config import IndexSettings
from services.index.log import Log
from services.index.rows import (
    CollectionRow,
    NewCandidate,
    attributes_to_json,
    candidate_of,
    parts_to_json,
)
from services.index.shard import Found, View
from services.index.slots import slot_of, slots_of

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
TAIL_ROWS = 5000
FRESH_SHARE = 0.9
"""Share of a search's time that may go by in waiting for a write."""
_SEQUENCE = re.compile("[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class SearchOrder:
    """A search as the engine takes it; `queries` are rows (m, dim)."""

    collection: str
    queries: FloatMatrix
    model_fingerprint: str
    modalities: Sequence[Modality]
    limit: int
    filter: Filter | None
    consistency: Consistency
    token: str


@dataclass(frozen=True, slots=True)
class Searched:
    """Hits by query and modality, the state that was searched, and where the time went."""

    lists: list[list[list[Found]]]
    token: str
    search_s: float
    queue_s: float


class IndexEngine:
    """One shard of every collection; an async context manager that follows the log while open."""

    def __init__(self, settings: IndexSettings) -> None:
        self._settings = settings
        self._slots = slots_of(settings.shard, settings.shard_count)
        self._log = Log(settings.url)
        self._blobs = LocalBlobs(settings.data_dir / "blobs")
        self._views: dict[str, View] = {}
        self._collections: dict[str, CollectionRow] = {}
        self._writer = ThreadPoolExecutor(1, "log-writer")
        self._reader = ThreadPoolExecutor(2, "log-reader")
        self._applier = ThreadPoolExecutor(1, "apply")
        self._searcher = ThreadPoolExecutor(settings.search_threads, "search")
        self._waiting_searches = 0
        self._look = asyncio.Event()
        self._applied = asyncio.Condition()
        self._owner: asyncio.Task[None] | None = None
        faiss.omp_set_num_threads(1)  # threads come from concurrent searches

    async def __aenter__(self) -> Self:
        """Load the shard from the log and begin to follow it."""
        await self._catch_up()
        self._owner = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._owner is not None:
            self._owner.cancel()
            await asyncio.gather(self._owner, return_exceptions=True)
        for pool in (self._writer, self._reader, self._applier, self._searcher):
            await asyncio.to_thread(pool.shutdown)
        self._log.close()

    # -- collections

    async def create_collection(self, name: str, dim: int, model_fingerprint: str) -> Collection:
        """Create the collection, or return it if it exists for the same model."""
        row = await self._run(
            self._writer, self._log.create_collection, name, dim, model_fingerprint
        )
        self._look.set()
        return await self._describe(row)

    async def get_collection(self, name: str) -> Collection:
        """Return the collection."""
        return await self._describe(await self._run(self._reader, self._log.collection, name))

    async def list_collections(self, after: str, limit: int) -> list[Collection]:
        """Return collections with names after `after`."""
        rows = await self._run(self._reader, self._log.collections, after, limit)
        return [await self._describe(row) for row in rows]

    async def delete_collection(self, name: str) -> int:
        """Delete the collection and return how many candidates it had."""
        count = await self._run(self._writer, self._log.delete_collection, name)
        self._look.set()
        return count

    async def _describe(self, row: CollectionRow) -> Collection:
        counts = await self._run(self._reader, self._log.counts, row)
        return Collection(
            row.name, row.dim, row.model_fingerprint, counts,
            self._settings.shard_count, row.create_time, row.token,
        )  # fmt: skip

    # -- candidates

    async def upsert(
        self,
        collection: str,
        candidates: Sequence[Candidate],
        vectors: FloatMatrix,
        model_fingerprint: str,
        request_id: str,
    ) -> str:
        """Store candidates durably, all or none, and return the token of the write."""
        row = await self._run(self._reader, self._log.collection, collection)
        _check_model(row, vectors.shape[1], model_fingerprint)
        if len(vectors) != len(candidates):
            problem = f"has {len(vectors)} rows for {len(candidates)} candidates"
            raise InvalidField("vectors", problem)
        unit = unit_rows(vectors)
        start = time.perf_counter()

        def write() -> str:
            rows = [self._new_row(c, v) for c, v in zip(candidates, unit, strict=True)]
            types = attribute_types_with(candidates)
            return self._log.upsert(collection, rows, types, request_id)

        token = await self._run(self._writer, write)
        self._wrote(len(candidates), time.perf_counter() - start)
        return token

    def _new_row(self, candidate: Candidate, vector: FloatMatrix) -> NewCandidate:
        return NewCandidate(
            candidate.id,
            slot_of(candidate.id),
            candidate.content.modality,
            attributes_to_json(candidate.attributes),
            parts_to_json(candidate.content, self._blobs),
            pack(vector),
        )

    async def delete(self, collection: str, ids: Sequence[str], request_id: str) -> tuple[int, str]:
        """Delete candidates durably; return how many there were, and the token."""
        start = time.perf_counter()
        answer = await self._run(self._writer, self._log.delete, collection, ids, request_id)
        self._wrote(answer[0], time.perf_counter() - start)
        return answer

    def _wrote(self, count: int, seconds: float) -> None:
        metrics.write_seconds.observe(seconds)
        metrics.written_total.inc(count)
        self._look.set()

    async def get(self, collection: str, ids: Sequence[str]) -> list[Candidate]:
        """Return those of `ids` that exist, in their order, with their pictures."""

        def read() -> list[Candidate]:
            rows = {row[0]: row for row in self._log.get(collection, ids)}
            return [candidate_of(*rows[i], self._blobs) for i in ids if i in rows]

        return await self._run(self._reader, read)

    async def page(self, collection: str, after: str, limit: int) -> list[Candidate]:
        """Return `limit` candidates with ids after `after`, without the bytes of pictures."""
        rows = await self._run(self._reader, self._log.page, collection, after, limit)
        return [candidate_of(*row, None) for row in rows]

    # -- search

    async def search(self, order: SearchOrder, deadline: Deadline) -> Searched:
        """Search this shard.

        Raises:
            StaleReplica: the state asked for was not reached in time.
            Overloaded: too many searches wait already.
        """
        row = await self._row_for_search(order)
        _check_model(row, order.queries.shape[1], order.model_fingerprint or row.model_fingerprint)
        if order.filter is not None:
            check_filter(order.filter)
            check_types(order.filter, row.attribute_types)
        await self._wait_for(row, order, deadline)
        view = self._views.get(order.collection)
        if view is None:
            raise CollectionNotFound(order.collection)
        if self._waiting_searches >= self._settings.max_waiting_searches:
            raise Overloaded(f"{self._waiting_searches} searches wait already")
        return await self._search_view(view, order)

    async def _search_view(self, view: View, order: SearchOrder) -> Searched:
        queries = unit_rows(order.queries, "queries")
        token, asked = f"{view.epoch}:{view.applied}", time.perf_counter()

        def search() -> Searched:
            begun = time.perf_counter()
            lists = view.search(queries, order.modalities, order.limit, order.filter)
            return Searched(lists, token, time.perf_counter() - begun, begun - asked)

        self._waiting_searches += 1
        try:
            result = await self._run(self._searcher, search)
        finally:
            self._waiting_searches -= 1
        metrics.search_seconds.observe(result.search_s)
        metrics.queue_seconds.observe(result.queue_s)
        return result

    async def _row_for_search(self, order: SearchOrder) -> CollectionRow:
        known = self._collections.get(order.collection)
        if known is None or order.consistency is Consistency.STRONG:
            known = await self._run(self._reader, self._log.collection, order.collection)
            self._look.set()
        return known

    async def _wait_for(self, row: CollectionRow, order: SearchOrder, deadline: Deadline) -> None:
        wanted = row.seq if order.consistency is Consistency.STRONG else 0
        if order.consistency is Consistency.SESSION:
            wanted = _seq_of(order.token, row)

        def is_fresh() -> bool:
            view = self._views.get(order.collection)
            return view is not None and view.epoch == row.epoch and view.applied >= wanted

        if is_fresh():
            return
        self._look.set()
        try:
            waiting = asyncio.timeout(deadline.share(FRESH_SHARE).remaining())
            async with waiting, self._applied:
                await self._applied.wait_for(is_fresh)
        except TimeoutError:
            raise StaleReplica("the shard has not applied the write that the token names") from None

    # -- following the log

    async def _follow(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._settings.poll_s):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            try:
                await self._catch_up()
            except Exception:  # whatever it is, the next look may succeed, and searches go on
                metrics.tail_failures_total.inc()
                logger.exception("the log cannot be followed")
                await asyncio.sleep(10 * self._settings.poll_s)

    async def _catch_up(self) -> None:
        rows = {row.name: row for row in await self._run(self._reader, self._log.collections)}
        self._collections = rows
        for name in [
            n for n, v in self._views.items() if n not in rows or rows[n].epoch != v.epoch
        ]:
            del self._views[name]
        for row in rows.values():
            if row.name not in self._views or self._views[row.name].applied < row.seq:
                await self._catch_up_with(row)

    async def _catch_up_with(self, row: CollectionRow) -> None:
        view = self._views.get(row.name)
        if view is None:
            view = View(row.name, row.epoch, row.dim, self._settings.seal_rows)
        try:
            while view.applied < row.seq:
                metrics.lag.labels(row.name).set(row.seq - view.applied)
                rows, through = await self._run(
                    self._reader, self._log.read_after,
                    row.name, row.epoch, view.applied, self._slots, TAIL_ROWS,
                )  # fmt: skip
                await self._run(self._applier, view.apply, rows, through)
                await self._publish(view)
            await self._publish(view)
        except CollectionNotFound:
            self._views.pop(row.name, None)

    async def _publish(self, view: View) -> None:
        self._views[view.name] = view
        metrics.lag.labels(view.name).set(0)
        for modality, count in view.counts().items():
            metrics.candidates.labels(view.name, modality.value).set(count)
        metrics.vector_bytes.set(sum(v.vector_bytes() for v in self._views.values()))
        async with self._applied:
            self._applied.notify_all()

    def describe_shard(self) -> tuple[int, int, int]:
        """Return candidates that can be found, bytes of vectors, and writes not applied yet."""
        views = self._views.values()
        behind = [
            self._collections[v.name].seq - v.applied for v in views if v.name in self._collections
        ]
        found = sum(sum(view.counts().values()) for view in views)
        return found, sum(view.vector_bytes() for view in views), sum(behind)

    async def _run(
        self, pool: ThreadPoolExecutor, work: Callable[..., Result], *arguments: object
    ) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)


def _check_model(row: CollectionRow, dim: int, model_fingerprint: str) -> None:
    if dim != row.dim:
        raise DimMismatch(
            f"vectors are {dim} wide; collection {row.name!r} has {row.dim}",
            {"collection": row.name, "dim": str(row.dim)},
        )
    if model_fingerprint != row.model_fingerprint:
        raise ModelMismatch(
            f"vectors are of model {model_fingerprint!r}; collection {row.name!r} is for "
            f"{row.model_fingerprint!r}. Ingest into a new collection, or serve that model",
            {"collection": row.name, "model_fingerprint": row.model_fingerprint},
        )


def _seq_of(token: str, row: CollectionRow) -> int:
    epoch, _, seq = token.partition(":")
    if not _SEQUENCE.fullmatch(seq):
        raise InvalidField("token", f"is {token[:80]!r}, which is no token of this mesh")
    return int(seq) if epoch == row.epoch else 0
