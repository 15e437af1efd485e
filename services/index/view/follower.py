"""Follows the log: keeps a view of every collection, as near to its head as it can be."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Self, TypeVar

from mmesh.errors import CollectionNotFound, LogUnavailable, MmeshError, StaleReplica
from mmesh.serving.deadline import Deadline
from services.index import metrics
from services.index.log.log import Log
from services.index.log.rows import CollectionRow
from services.index.slots import SLOTS
from services.index.view.memory import Budget, load_bytes
from services.index.view.view import View

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
TAIL_ROWS = 5000
RETRY_S = 0.5
"""Pause after a look at the log that failed."""
LOOK_ANYWAY_S = 1.0
"""Longest time between looks at all collections, even if the log has not changed."""
Restore = Callable[[CollectionRow], Awaitable[View | None]]


@dataclass
class Follower:
    """The views of one shard; an async context manager that follows the log once started.

    `restore` gives a view from a snapshot, or None; `changed` is called after rows were applied,
    and `dropped` with a view that is not used any more.
    """

    log: Log
    slots: range
    delta_rows: int
    poll_s: float
    budget: Budget
    restore: Restore = field(default=lambda row: _nothing(row))
    changed: Callable[[], None] = lambda: None
    dropped: Callable[[View], None] = lambda view: None
    views: dict[str, View] = field(default_factory=dict)
    """By the real name of the collection; each has reached the head that it saw when it began."""
    collections: Mapping[str, CollectionRow] = field(default_factory=dict)
    """As last seen in the log, by name and by alias."""
    refused: dict[str, MmeshError] = field(default_factory=dict)
    """Why collections are not loaded, such as that they would not fit into memory, by name."""

    def __post_init__(self) -> None:
        """Make the threads; nothing is read yet."""
        self.applier = ThreadPoolExecutor(1, "apply")
        """The one thread that changes views."""
        self._reader = ThreadPoolExecutor(1, "tail")
        self._look, self._applied = asyncio.Event(), asyncio.Condition()
        self._loading: dict[str, tuple[View, int]] = {}
        self._heads: dict[str, float] = {}
        self._settled: tuple[int | None, float] = (None, 0.0)
        """Version of the log with which all views are in step, and until when to rely on that."""
        self._owner: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._owner is not None:
            self._owner.cancel()
            await asyncio.gather(self._owner, return_exceptions=True)
        await asyncio.to_thread(self._reader.shutdown)
        await asyncio.to_thread(self.applier.shutdown)

    def look(self) -> None:
        """Look at the log now instead of at the next poll."""
        self._look.set()

    def row(self, name_or_alias: str) -> CollectionRow | None:
        """Return the collection as last seen in the log."""
        return self.collections.get(name_or_alias)

    # -- freshness

    async def wait_for(self, row: CollectionRow, seq: int, deadline: Deadline) -> View:
        """Return the collection's view once it reflects `seq`.

        Raises:
            StaleReplica: it does not in time.
            MemoryFull: this shard refused to load the collection.
        """

        def fresh() -> View | None:
            view = self.views.get(row.name)
            return view if view and view.epoch == row.epoch and view.applied >= seq else None

        if (view := fresh()) is not None:
            return view
        if row.name in self.refused:
            raise self.refused[row.name]
        self.look()
        try:
            async with asyncio.timeout(deadline.remaining()), self._applied:
                await self._applied.wait_for(fresh)
        except TimeoutError:
            raise StaleReplica("the shard has not applied the write that the token names") from None
        view = fresh()
        assert view is not None
        return view

    def has(self, view: View) -> bool:
        """Tell whether a view is in use, or is being loaded."""
        return any(view is one for one in (*self.views.values(), *self.loading()))

    def loading(self) -> list[View]:
        """Return the views that searches cannot use yet."""
        return [view for view, _ in self._loading.values()]

    def lags(self) -> dict[str, int]:
        """Return by collection the writes that are not applied yet."""
        rows = {name: self.collections.get(name) for name in self.views}
        return {n: max(0, row.seq - self.views[n].applied) for n, row in rows.items() if row}

    # -- following

    async def catch_up(self) -> None:
        """Bring all views to the head that the log has now; waits for the log where need be."""
        while True:
            try:
                while await self._step():
                    pass
                return
            except LogUnavailable as error:
                logger.warning("the log cannot be read", extra={"error": error.message})
                await asyncio.sleep(RETRY_S)

    def start(self) -> None:
        """Begin to apply what is written."""
        self._owner = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            try:
                if not await self._step():
                    await self._pause()
            except LogUnavailable as error:
                metrics.tail_failures_total.inc()
                logger.warning("the log cannot be followed", extra={"error": error.message})
                await asyncio.sleep(RETRY_S)
            except Exception:  # whatever it is, the next look may succeed, and searches go on
                metrics.tail_failures_total.inc()
                logger.exception("the log cannot be followed")
                await asyncio.sleep(RETRY_S)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self.poll_s):
                await self._look.wait()
        except TimeoutError:
            pass
        self._look.clear()

    async def _step(self) -> bool:
        """Apply one batch of each collection; return whether any is still behind."""
        version = self.log.version()
        settled, until = self._settled
        if version is not None and version == settled and time.monotonic() < until:
            return False
        rows = {row.name: row for row in await self._read(self.log.collections)}
        aliases = {alias: row for row in rows.values() for alias in row.aliases}
        self.collections = {**aliases, **rows}
        self._drop_gone(rows)
        behind = [await self._advance(row) for row in rows.values()]
        if behind:
            async with self._applied:
                self._applied.notify_all()
        in_step = not any(behind) and not self.refused
        self._settled = (version if in_step else None, time.monotonic() + LOOK_ANYWAY_S)
        return any(behind)

    def _drop_gone(self, rows: Mapping[str, CollectionRow]) -> None:
        loading = {name: view for name, (view, _) in self._loading.items()}
        for name, view in [*self.views.items(), *loading.items()]:
            row = rows.get(name)
            if row is None or row.epoch != view.epoch:
                self._forget(name)
            elif view.lacks_deletions(row.purged):
                logger.warning("deletions were purged; loading anew", extra={"collection": name})
                self._forget(name)
        self.refused = {name: error for name, error in self.refused.items() if name in rows}

    def _forget(self, name: str) -> None:
        loading, _ = self._loading.pop(name, (None, 0))
        view = self.views.pop(name, loading)
        if view is not None:
            self.dropped(view)
        self._heads.pop(name, None)
        metrics.forget_collection(name)

    async def _advance(self, row: CollectionRow) -> bool:
        """Apply some of what is new in a collection; return whether there is more."""
        try:
            view = self.views.get(row.name) or await self._begin(row)
            if view.applied < row.seq:
                await self._apply_some(view, row)
        except CollectionNotFound:  # deleted, or what it needs was purged: look again
            self._forget(row.name)
            return True
        except LogUnavailable:
            raise
        except MmeshError as error:  # of this collection alone
            self._refuse(row.name, error)
            return False
        self.refused.pop(row.name, None)
        self._measure(view, row)
        return view.applied < row.seq

    async def _begin(self, row: CollectionRow) -> View:
        """Return the view that is being loaded, begun from a snapshot if there is one."""
        if row.name not in self._loading:
            rows = sum(row.counts.values()) * len(self.slots) // SLOTS
            self.budget.check(row.name, load_bytes(rows, row.dim))
            logger.info("loading", extra={"collection": row.name, "candidates": rows})
            view = await self.restore(row) or self._empty_view(row)
            self._loading[row.name] = (view, row.seq)
        view, _ = self._loading[row.name]
        self._show(view)
        return view

    def _empty_view(self, row: CollectionRow) -> View:
        return View(row.name, row.epoch, row.dim, self.delta_rows, purged=row.purged)

    async def _apply_some(self, view: View, row: CollectionRow) -> None:
        self.budget.check(row.name, load_bytes(min(TAIL_ROWS, row.seq - view.applied), row.dim))
        read = partial(self.log.read_after, purged=view.purged)
        rows, through = await self._read(
            read, row.name, row.epoch, view.applied, self.slots, TAIL_ROWS, row.dim
        )
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.applier, view.apply, rows, through)
        self._show(view)
        if len(rows):
            self.changed()

    def _show(self, view: View) -> None:
        """Let searches use a view once it has reached the head that it saw when it began."""
        _, head = self._loading.get(view.name, (view, 0))
        if view.applied >= head:
            self._loading.pop(view.name, None)
            self.views[view.name] = view

    def _refuse(self, name: str, error: MmeshError) -> None:
        if name not in self.refused:
            logger.error("collection refused", extra={"collection": name, "why": error.message})
        self.refused[name] = error

    def _measure(self, view: View, row: CollectionRow) -> None:
        lag, now = max(0, row.seq - view.applied), time.monotonic()
        last_fresh = self._heads.setdefault(view.name, now) if lag else now
        self._heads[view.name] = last_fresh
        metrics.lag.labels(view.name).set(lag)
        metrics.staleness_seconds.labels(view.name).set(now - last_fresh)
        for modality, count in view.counts().items():
            metrics.candidates.labels(view.name, modality.value).set(count)

    async def _read(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._reader, work, *arguments)


async def _nothing(_row: CollectionRow) -> None:
    return None
