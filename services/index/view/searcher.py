"""Runs searches: short ones at once on the event loop, the others on threads, in natural batches.

A search starts as soon as the event loop has no other call at its door, so under load those that
came in at about the same time, or queued while all threads were busy, share a call of FAISS where
that makes them cheaper; a lone one waits for nobody. See docs/adr/0011.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from mmesh.content import Modality
from mmesh.errors import Draining, Overloaded
from mmesh.filters import Filter
from mmesh.vectors import FloatMatrix
from services.index import metrics
from services.index.segments.exact import single_threaded
from services.index.view.view import Found, View
from services.index.view.watch import Watch

logger = logging.getLogger(__name__)

MAX_BATCH = 64
"""Queries in one call of FAISS: more gain little and delay those that come after."""
WORTH_A_THREAD = 32
"""Queries from which on a second batch runs beside the first of its view, where batches gain: two
halves at a time cost more CPU than the whole after one another."""
QUIET_TURNS = 12
"""Turns of the loop without a new search after which nobody is at the door: a call that has reached
the process needs five or more to reach its handler, and an idle turn takes microseconds."""
ANSWER_TURNS = 8
"""Turns of the loop in which answers are sent."""
WORTH_HALVING = 6
"""Queries of a short call from which on half of them wait until the others are answered."""
MAX_GATHERING_S = 0.005
"""A search that waited so long starts even while others keep coming."""
_SMOOTHING = 0.1


class Searched(NamedTuple):
    """Hits by query and modality, the state that was searched, and where the time went."""

    lists: list[list[Found]]
    token: str
    search_s: float
    queue_s: float
    unknown: Mapping[str, str] = {}  # nobody writes into it
    """Attributes in the filter that no candidate has, and which may have been meant."""


class PendingSearch(NamedTuple):
    """A search of one view; `queries` are unit rows (m, dim)."""

    view: View
    queries: FloatMatrix
    modalities: tuple[Modality, ...]
    limit: int
    filter: Filter | None
    is_reproducible: bool = False
    """See `reproducible`."""

    @property
    def shares_with(self) -> tuple[object, ...]:
        """What two searches must have in common to share a call."""
        return (id(self.view), self.modalities, self.limit, self.filter, self.is_reproducible)


@dataclass(slots=True)
class _Waiting:
    work: PendingSearch
    outcome: asyncio.Future[Searched]
    since: float
    watch: Watch | None
    is_begun: bool = False
    """Whether it runs, or has run."""


_Done = tuple[list[Searched], Exception | None]
"""What each search of a batch gets, or why none gets anything."""
_NOT_RUN: _Done = ([], Draining("this process is stopping"))
Search = Callable[
    [FloatMatrix, Sequence[Modality], int, Filter | None, bool], list[list[Found]] | None
]
"""`View.search` or `View.try_search`."""
Watcher = Callable[[PendingSearch], Watch | None]
"""Chooses the searches that are watched."""


class Searcher:
    """Answers searches with at most `threads` at a time besides the event loop."""

    def __init__(self, threads: int, max_waiting: int, inline_s: float) -> None:
        self._threads, self._max_waiting, self._inline_s = threads, max_waiting, inline_s
        self._pool = ThreadPoolExecutor(threads, "search", initializer=single_threaded)
        self._waiting: list[_Waiting] = []
        self._running: list[View] = []
        """The view of each batch that runs on a thread."""
        self._is_due = False
        self.watcher: Watcher | None = None
        """Asked about each search, on the event loop."""
        single_threaded()

    @property
    def has_room(self) -> bool:
        """Whether a search that came now could start at once."""
        return not self._waiting and len(self._running) < self._threads

    async def close(self) -> None:
        """Let running searches end."""
        await asyncio.to_thread(self._pool.shutdown)

    async def search(self, work: PendingSearch) -> Searched:
        """Answer one search.

        Raises:
            Overloaded: too many searches wait already.
        """
        if len(self._waiting) >= self._max_waiting:
            self._waiting = _not_done(self._waiting)
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{len(self._waiting)} searches wait already")
        loop = asyncio.get_running_loop()
        watch = None if self.watcher is None else self.watcher(work)
        waiting = _Waiting(work, loop.create_future(), time.perf_counter(), watch)
        self._waiting.append(waiting)
        self._make_due(loop)
        try:
            return await waiting.outcome
        except asyncio.CancelledError:
            if not waiting.is_begun:  # else it is measured when it ends
                metrics.queue_seconds.observe(time.perf_counter() - waiting.since)
            raise

    def _make_due(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting and not self._is_due and len(self._running) < self._threads:
            self._is_due = True
            self._gather(loop)

    def _gather(self, loop: asyncio.AbstractEventLoop, known: int = 0, turns: int = 0) -> None:
        """Start after `turns` more turns of the loop; anew if more than the `known` ones wait."""
        try:
            count = len(self._waiting)
            waited_s = time.perf_counter() - self._waiting[0].since
            if count > known:
                turns = QUIET_TURNS
            if not turns or count >= MAX_BATCH or waited_s > MAX_GATHERING_S:
                self._start(loop)
            else:
                loop.call_soon(self._gather, loop, count, turns - 1)
        except Exception as error:  # or no search would ever be due again
            logger.exception("searches could not be started")
            self._is_due = False
            waiting, self._waiting = self._waiting, []
            _settle(waiting, [], error)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start as much of what waits as there is room for."""
        self._is_due = False
        self._waiting = _not_done(self._waiting)
        while len(self._running) < self._threads and (batch := self._take()):
            try:
                if not self._running and self._is_short(batch) and self._run_here(loop, batch):
                    return
                self._run_on_thread(loop, batch)
            except Exception as error:  # or those who wait for the batch would do so for ever
                logger.exception("a search could not be started")
                _settle(batch, [], error)

    def _run_here(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting]) -> bool:
        """Answer a short batch, or half of it, and go on when the answers are on their way.

        So callers work on one half while this process works on the other, instead of in turns.
        Return whether that was done: beside a change of the view a search would have to wait.
        """
        now, later = _halved(batch)
        done = _run(now, now[0].work.view.try_search)
        if done is None:
            return False
        _begin(now)
        self._waiting = [*later, *self._waiting]
        _settle(now, *done)
        if self._waiting:
            self._is_due = True
            loop.call_soon(self._gather, loop, len(self._waiting), ANSWER_TURNS)
        return True

    def _run_on_thread(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting]) -> None:
        view = batch[0].work.view
        _begin(batch)
        running = loop.run_in_executor(self._pool, _run, batch, view.search)
        self._running.append(view)
        running.add_done_callback(partial(self._end, loop, batch))

    def _end(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[_Waiting],
        done: asyncio.Future[_Done | None],
    ) -> None:
        self._running.remove(batch[0].work.view)
        results, error = _NOT_RUN if done.cancelled() else done.result() or _NOT_RUN
        _settle(batch, results, error)
        self._make_due(loop)

    def _take(self) -> list[_Waiting]:
        """Remove and return the oldest search that may run, with those that share its call."""
        tried: set[tuple[object, ...]] = set()
        for first in self._waiting:
            if first.work.shares_with in tried:
                continue
            batch = self._batch_of(first)
            if self._is_worth_a_thread(batch):
                taken = set(map(id, batch))
                self._waiting = [w for w in self._waiting if id(w) not in taken]
                return batch
            tried.add(first.work.shares_with)
        return []

    def _batch_of(self, first: _Waiting) -> list[_Waiting]:
        batch, rows = [first], len(first.work.queries)
        if not first.work.view.gains_from_batches(first.work.modalities):
            return batch
        for other in self._waiting:
            more = len(other.work.queries)
            fits = other is not first and rows + more <= MAX_BATCH
            if fits and other.work.shares_with == first.work.shares_with:
                batch.append(other)
                rows += more
        return batch

    def _is_worth_a_thread(self, batch: list[_Waiting]) -> bool:
        view, modalities = batch[0].work.view, batch[0].work.modalities
        if view not in self._running or not view.gains_from_batches(modalities):
            return True
        return _queries_in(batch) >= WORTH_A_THREAD

    def _is_short(self, batch: list[_Waiting]) -> bool:
        """Whether a hop to a thread would cost more than it could save."""
        work = batch[0].work
        if work.filter is not None or work.is_reproducible:
            return False
        return 0 < work.view.cost_s * _queries_in(batch) <= self._inline_s


def _not_done(waiting: list[_Waiting]) -> list[_Waiting]:
    return [one for one in waiting if not one.outcome.done()]


def _begin(batch: list[_Waiting]) -> None:
    for waiting in batch:
        waiting.is_begun = True


def _queries_in(batch: list[_Waiting]) -> int:
    return sum(len(waiting.work.queries) for waiting in batch)


def _halved(batch: list[_Waiting]) -> tuple[list[_Waiting], list[_Waiting]]:
    """Return the first half of a batch, by queries, and the rest; all of it if that is little."""
    rows = _queries_in(batch)
    if rows < WORTH_HALVING:
        return batch, []
    count = taken = 0
    while 2 * taken < rows:
        taken += len(batch[count].work.queries)
        count += 1
    return batch[:count], batch[count:]


def _run(batch: list[_Waiting], search: Search) -> _Done | None:
    """Search for all of a batch in one call; None where `search` would have to wait."""
    begun = time.perf_counter()
    works = [waiting.work for waiting in batch]
    first, view = works[0], works[0].view
    try:
        token = view.token
        queries = first.queries if len(works) == 1 else np.vstack([w.queries for w in works])
        for waiting in batch:
            if waiting.watch is not None:
                waiting.watch.begin()
        lists = search(queries, first.modalities, first.limit, first.filter, first.is_reproducible)
        if lists is None:
            return None
        search_s = time.perf_counter() - begun
        if first.filter is None:
            _note_cost(view, search_s / len(queries))
        return _divided(batch, lists, token, search_s, begun), None
    except Exception as error:
        return [], error


def _note_cost(view: View, cost_s: float) -> None:
    known_s = view.cost_s
    view.cost_s = cost_s if not known_s else known_s + _SMOOTHING * (cost_s - known_s)


def _divided(
    batch: list[_Waiting], lists: list[list[Found]], token: str, search_s: float, begun: float
) -> list[Searched]:
    """Return what each search of a batch gets of the hits of all its queries."""
    results, start = [], 0
    for waiting in batch:
        end = start + len(waiting.work.queries)
        results.append(Searched(lists[start:end], token, search_s, begun - waiting.since))
        if waiting.watch is not None:
            waiting.watch.end(lists[start:end])
        start = end
    return results


def _settle(batch: Sequence[_Waiting], results: list[Searched], error: Exception | None) -> None:
    """Give each search of a batch what it gets; measure also those that nobody waits for any more.

    These took their time, which is what autoscalers follow: without them a shard whose searches
    outlast their callers would seem idle.
    """
    metrics.search_batch.observe(len(batch))
    for result in results:
        metrics.search_seconds.observe(result.search_s)
        metrics.queue_seconds.observe(result.queue_s)
    for number, waiting in enumerate(batch):
        if waiting.outcome.done():
            continue
        if error is not None:
            waiting.outcome.set_exception(error)
            continue
        waiting.outcome.set_result(results[number])
        if waiting.watch is not None:
            waiting.watch.close()
