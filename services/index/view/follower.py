"""Follows the log: keeps a view of every collection, as near to its head as it can be.

One loop looks for collections that are new, changed or gone. Each collection that is behind has a
task of its own until it is in step, so one that is slow, or fails, makes no other wait.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, Self, TypeVar

from mmesh.errors import (
    CollectionNotFound,
    HistoryLost,
    LogUnavailable,
    MmeshError,
    StaleReplica,
)
from mmesh.serving.backoff import Backoff, Pauses
from mmesh.serving.deadline import Deadline
from mmesh.serving.supervision import Supervised
from services.index import metrics
from services.index.log.log import Log
from services.index.log.rows import CollectionRow, Rows
from services.index.view.failures import note_failed_look, note_refusal
from services.index.view.loader import TAIL_ROWS, Loader, LogAlone, Source
from services.index.view.memory import MemoryBudget
from services.index.view.view import View
from services.index.view.waiters import Waiters

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
PAUSES = Pauses(first_s=0.5, longest_s=5.0)
"""After a look at the log that failed, and before a collection that failed is tried again."""
LOOK_ANYWAY_S = 1.0
"""Longest time between looks at all collections, even if the log has not changed."""
FEW = 8
"""Collections that are looked at one by one; a look at all of them is cheaper than at more."""


@dataclass(eq=False, slots=True)
class _Followed:
    """A collection in one of its epochs."""

    row: CollectionRow
    """As last seen in the log."""
    head: int
    """The sequence from which on searches can use the view: the head when loading began."""
    view: View | None = None
    is_busy: bool = False
    """Whether a task is bringing it into step."""
    is_dropped: bool = False
    fresh_at: float = field(default_factory=time.monotonic)
    """When it was last known to be in step."""
    noted_at: float = 0.0
    """When `row` was about to be read."""
    checked_at: float = -math.inf
    """A moment at which the log had all that the view reflects, and no more."""

    @property
    def writes_behind(self) -> int:
        return max(0, self.row.seq - (self.view.applied if self.view else 0))

    @property
    def is_behind(self) -> bool:
        """Whether the view lacks something that the log has, or may have what the log lacks."""
        if self.view is None or self.view.whole < self.row.seq:
            return True
        return self.checked_at < self.noted_at

    @property
    def is_loaded(self) -> bool:
        """Whether searches can use the view: it has come from the log, or was compared with it."""
        if self.view is None or self.view.whole < self.head:
            return False
        return self.checked_at > -math.inf

    def can_reach(self, row: CollectionRow) -> bool:
        """Whether the log can still bring this to the state of `row`."""
        if row.epoch != self.row.epoch:
            return False
        return self.view is None or not self.view.lacks_deletions(row.purged)


class Lag(NamedTuple):
    """How far a collection is behind its log."""

    writes: int
    """Those that are not applied yet, as far as is known."""
    seconds: float
    """Since it was last known to be in step."""


class Follower:
    """The views of one shard; an async context manager that follows the log while open."""

    def __init__(
        self,
        log: Log,
        slots: range,
        *,
        delta_rows: int,
        poll_s: float,
        budget: MemoryBudget,
        source: Source | None = None,
        pauses: Pauses = PAUSES,
    ) -> None:
        self.slots, self.budget = slots, budget
        self.views: dict[str, View] = {}
        """By the real name of the collection; each has reached the head of when it began."""
        self.collections: dict[str, CollectionRow] = {}
        """As last seen in the log, by name and by alias."""
        self.refused: dict[str, MmeshError] = {}
        """Why collections are not brought into step, such as for lack of memory, by name."""
        self._log, self._poll_s = log, poll_s
        self._loader = Loader(log, slots, delta_rows, budget, source or LogAlone())
        self._followed: dict[str, _Followed] = {}
        self._waiters, self._pauses, self._backoff = Waiters(), pauses, Backoff[str](pauses)
        self._subscribers: list[Callable[[View], None]] = []
        self._wake, self._all_loaded = asyncio.Event(), asyncio.Event()
        self._names: set[str] = set()
        """Collections to look at, as `look` was told."""
        self._all_asked, self._has_looked = False, False
        self._version: int | None = None
        """The log's, when all collections were read last."""
        self._next_look_at, self._look_anyway_at = 0.0, 0.0
        self._task = Supervised("index-follower", self._follow)

    async def __aenter__(self) -> Self:
        self._task.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._task.aclose()
        await self._loader.close()

    async def loaded(self) -> None:
        """Wait until each collection of the log can be searched, or was refused."""
        await self._all_loaded.wait()

    def subscribe(self, on_change: Callable[[View], None]) -> None:
        """Call `on_change` with a view after rows were applied to it, from now on."""
        self._subscribers.append(on_change)

    def look(self, collection: str = "") -> None:
        """Look at a collection, or at all, now instead of at the next poll."""
        if collection:
            self._names.add(collection)
        else:
            self._all_asked = True
        self._wake.set()

    async def apply(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Run on the thread that changes views, so that nothing changes meanwhile."""
        return await self._loader.apply(work, *arguments)

    # -- what there is

    def row(self, name_or_alias: str) -> CollectionRow | None:
        """Return the collection as last seen in the log."""
        return self.collections.get(name_or_alias)

    def has(self, view: View) -> bool:
        """Tell whether a view is in use, or is being loaded."""
        followed = self._followed.get(view.name)
        return followed is not None and followed.view is view

    def loading(self) -> list[View]:
        """Return the views that searches cannot use yet."""
        followed = self._followed.values()
        return [one.view for one in followed if one.view is not None and not one.is_loaded]

    def lags(self) -> dict[str, Lag]:
        """Return how far each collection is behind its log, those that are being loaded too."""
        now = time.monotonic()
        return {
            name: Lag(one.writes_behind, now - one.fresh_at) for name, one in self._followed.items()
        }

    async def wait_for(
        self, row: CollectionRow, seq: int, deadline: Deadline, *, since: float = -math.inf
    ) -> View:
        """Return the collection's view once it reflects `seq`, and all that the log had `since`.

        A view is no further than its log unless that lost its tail. Whoever must know gives a
        moment on the monotonic clock: the view then was compared with the log after it.

        Raises:
            StaleReplica: it does not in time.
            CollectionNotFound: it was deleted meanwhile.
            MemoryFull: this shard refused to load the collection.
        """
        find = partial(self._fresh, row, seq, since)
        if (view := find()) is not None:
            return view
        if row.name in self.refused:
            raise self.refused[row.name].with_traceback(None)  # or each raise would add to it
        self.look(row.name)
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await self._waiters.wait(row.name, find)
        except TimeoutError:
            raise StaleReplica("the shard has not applied the write that the token names") from None

    def _fresh(self, row: CollectionRow, seq: int, since: float) -> View | None:
        view, one = self.views.get(row.name), self._followed.get(row.name)
        if view is None or one is None or view.epoch != row.epoch or view.whole < seq:
            return None
        return view if one.checked_at >= since else None

    # -- looking at the log

    async def _follow(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    await self._look()
                except MmeshError as error:  # the log is away; searches go on
                    note_failed_look(error)
                    await asyncio.sleep(self._pauses.after(1))
                    continue
                self._task.progress()
                self._bring_all_into_step(group)
                await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._poll_s):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _look(self) -> None:
        """See what is new: in the collections that were named, or in all where that is due."""
        names, self._names = self._names, set()
        if self._all_asked or len(names) > FEW or self._is_look_at_all_due():
            await self._look_at_all()
            return
        for name in names:
            begun_at = time.monotonic()
            try:
                row = await self._loader.read(self._log.collection, name)
            except CollectionNotFound:
                self.look()
            else:
                self._note(row, begun_at)

    def _is_look_at_all_due(self) -> bool:
        now = time.monotonic()
        if now < self._next_look_at:
            return False
        version = self._log.version()
        return version is None or version != self._version or now >= self._look_anyway_at

    async def _look_at_all(self) -> None:
        self._all_asked = False
        version, now = self._log.version(), time.monotonic()
        try:
            rows = {row.name: row for row in await self._loader.read(self._log.collections)}
        except BaseException:
            self._all_asked = True
            raise
        self._version, self._next_look_at = version, now + self._poll_s
        self._look_anyway_at = now + LOOK_ANYWAY_S
        self.collections = {}
        for name, one in list(self._followed.items()):
            if name not in rows:
                self._drop(one)
                self._waiters.fail(name, CollectionNotFound(name))
        for row in rows.values():
            self._note(row, now)
        self._has_looked = True
        self._note_loaded()

    def _note(self, row: CollectionRow, begun_at: float) -> None:
        """Take note of the state of a collection in the log, which began to be read then."""
        self.collections |= dict.fromkeys((row.name, *row.aliases), row)
        followed = self._followed.get(row.name)
        if followed is not None and not followed.can_reach(row):
            logger.warning("a view begins anew", extra={"collection": row.name})
            self._drop(followed)
            followed = None
        if followed is None:
            self._followed[row.name] = _Followed(row, head=row.seq, noted_at=begun_at)
            return
        followed.row, followed.noted_at = row, begun_at
        if followed.view is not None and followed.view.at == row.head:
            followed.view.whole, followed.checked_at = row.seq, begun_at
            self._waiters.wake(row.name)

    def _drop(self, one: _Followed) -> None:
        """Forget a collection that is gone, or begins anew."""
        name, one.is_dropped = one.row.name, True
        if self._followed.get(name) is one:
            del self._followed[name]
            self.refused.pop(name, None)
        self._forget_view(one)
        self._backoff.succeeded(one.row.epoch)

    def _forget_view(self, one: _Followed) -> None:
        view, one.view = one.view, None
        if view is not None:
            if self.views.get(view.name) is view:
                del self.views[view.name]
            self._loader.discard(view)

    # -- bringing views into step

    def _bring_all_into_step(self, group: asyncio.TaskGroup) -> None:
        now = time.monotonic()
        for one in self._followed.values():
            if not one.is_behind:
                one.fresh_at = now
            elif not one.is_busy and self._backoff.is_due(one.row.epoch):
                one.is_busy = True
                group.create_task(self._bring_into_step(one))

    async def _bring_into_step(self, one: _Followed) -> None:
        try:
            while one.is_behind and not one.is_dropped:
                await self._advance(one)
        except CollectionNotFound:  # deleted, or what the view needs was purged
            self._drop(one)
            self.look()
        except HistoryLost:
            metrics.histories_lost_total.labels("view").inc()
            about = {"collection": one.row.name, "applied": one.view and one.view.applied}
            logger.warning("the log has lost writes; a view begins anew", extra=about)
            self._drop(one)
            self.look()
        except Exception as error:  # of this collection alone, whatever it is
            if not one.is_dropped:
                self._refuse(one, error)
        else:
            self._backoff.succeeded(one.row.epoch)
            if not one.is_dropped:
                self.refused.pop(one.row.name, None)
        finally:
            one.is_busy = False

    async def _advance(self, one: _Followed) -> None:
        """Load the view if that is to be done, and apply some of what is new."""
        view = one.view
        if view is None:
            view = await self._loader.begin(one.row)
            if one.is_dropped:
                self._loader.discard(view)
                return
            one.view = view
        if one.is_behind:
            row, begun_at = one.row, time.monotonic()
            rows, through = await self._loader.read_some(view, row)
            await self._apply(one, view, rows, through)
            one.checked_at = begun_at
            if through < row.seq and len(rows) < TAIL_ROWS and one.row is row:  # it lost its tail
                one.row, one.head = replace(row, seq=through), min(one.head, through)
        self._show(one)

    async def _apply(self, one: _Followed, view: View, rows: Rows, through: int) -> None:
        try:
            await self.apply(view.apply, rows, through)
        except Exception:  # a part may be applied, which would be there twice after another try
            self._forget_view(one)
            one.head = one.row.seq
            raise
        if len(rows) < TAIL_ROWS:  # that was all of the log
            view.whole = through
        view.history.passed(rows.commits)
        if len(rows):
            for on_change in self._subscribers:
                on_change(view)

    def _show(self, one: _Followed) -> None:
        """Let searches use a view once it has reached the head that it saw when it began."""
        if one.is_dropped or one.view is None or not one.is_loaded:
            return
        self.views[one.view.name] = one.view
        if not one.is_behind:
            one.fresh_at = time.monotonic()
        self._waiters.wake(one.view.name)
        self._note_loaded()

    def _note_loaded(self) -> None:
        if self._has_looked and not self._all_loaded.is_set():
            followed = self._followed.items()
            if all(one.is_loaded or name in self.refused for name, one in followed):
                self._all_loaded.set()

    def _refuse(self, one: _Followed, error: Exception) -> None:
        name = one.row.name
        self._backoff.failed(one.row.epoch)
        if isinstance(error, LogUnavailable):  # of all collections, and searches go on
            note_failed_look(error, name)
            return
        self.refused[name] = told = note_refusal(error, name, self.refused.get(name))
        self._waiters.fail(name, told)
        self._note_loaded()
