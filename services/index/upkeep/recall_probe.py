"""Recall probe: a few live searches are done again exactly, and what they found is compared.

The recall that a build measures is of its own sample, and of one segment. What users ask moves on,
rows die, filters narrow; this is what their searches find.

It is exported as two counters, what exact search finds and how much of that a search found: the
rate of one by the rate of the other is the recall of any time, over any set of replicas, each
search with the weight of what there was to find. A gauge of a mean has no weight, so that means of
several processes cannot be added up; a histogram would have ten times the series for each name.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import randrange
from typing import Protocol, Self, TypeVar

from mmesh.content import Modality
from mmesh.serving.supervision import Supervised
from services.index import metrics
from services.index.segments.exact import single_threaded
from services.index.upkeep.cpu_budget import CpuBudget
from services.index.upkeep.exact_pass import Agreement, ExactPass
from services.index.view.searcher import PendingSearch, Watcher
from services.index.view.view import View
from services.index.view.watch import Seen, Watch

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
CPU_SHARE = 0.01
"""Most that probes take of the CPU that the process uses."""
CUTS = (1, 10, 100)
"""How many hits recall is told of, as far as a search asks for so many."""
MAX_WAITING = 4
"""Searches that wait to be repeated: each keeps what it saw in memory."""
LOOK_S, LOOKS = 0.01, 500
"""Seconds between looks whether searches leave room, and looks after which a probe is given up."""


class Searches(Protocol):
    """Where live searches run: a `Searcher`."""

    watcher: Watcher | None

    @property
    def has_room(self) -> bool:
        """Whether a search that came now could start at once."""
        ...


class RecallProbe:
    """Repeats a share of live searches exactly; an async context manager.

    A probe runs on a thread of its own, piece by piece, each when no live search would have to wait
    for its turn. That thread has no lower priority than others: while it held the interpreter's
    lock, and did not run, they would all wait for it.

    Args:
        share: of the searches, 0 to 1; with 0 none is looked at.
        searches: where they run.
        has: whether a view is still in use.
        label: what metrics call a collection.
        budget: how much CPU it may take.
        looks: looks at `searches` for room after which a probe is given up.
        chance: returns numbers between 0 and 1.
        cpu_s: returns the CPU seconds of the calling thread.
    """

    def __init__(
        self,
        share: float,
        searches: Searches,
        has: Callable[[View], bool],
        label: Callable[[str], str] = str,
        *,
        budget: CpuBudget | None = None,
        looks: int = LOOKS,
        chance: Callable[[], float] = random.random,
        cpu_s: Callable[[], float] = time.thread_time,
    ) -> None:
        self._share, self._searches, self._has, self._label = share, searches, has, label
        self._budget = budget or CpuBudget(CPU_SHARE)
        self._looks, self._chance, self._cpu_s = looks, chance, cpu_s
        self._pool = ThreadPoolExecutor(1, "recall-probe", initializer=single_threaded)
        self._waiting: asyncio.Queue[tuple[Watch, Seen]] = asyncio.Queue(MAX_WAITING)
        self._spent_s = 0.0
        """CPU seconds of the probe that runs."""
        self._logged: set[type[Exception]] = set()
        self._task = Supervised("index-recall-probe", self._work)

    async def __aenter__(self) -> Self:
        if self._share:
            self._task.start()
            self._searches.watcher = self.watch
        return self

    async def __aexit__(self, *_: object) -> None:
        self._searches.watcher = None
        await self._task.aclose()
        await asyncio.to_thread(self._pool.shutdown)

    def watch(self, work: PendingSearch) -> Watch | None:
        """Choose some searches, and of each a query and a modality, by chance."""
        if self._chance() >= self._share or not (len(work.queries) and work.modalities):
            return None
        if not self._budget.is_full:
            _note("budget")
            return None
        query, modality = randrange(len(work.queries)), randrange(len(work.modalities))
        return Watch(
            view=work.view,
            modality=work.modalities[modality],
            query=work.queries[query : query + 1],
            limit=work.limit,
            condition=work.filter,
            place=(query, modality),
            tell=self._offer,
        )

    def _offer(self, watch: Watch) -> None:
        if watch.error is not None:
            self._note_failure(watch.error)
        elif watch.seen is None:
            _note("changed")
        elif self._waiting.full():
            _note("busy")
        else:
            self._waiting.put_nowait((watch, watch.seen))

    async def _work(self) -> None:
        while True:
            watch, seen = await self._waiting.get()
            try:
                _note(await self._repeat(watch, seen))
            except Exception as error:  # FAISS and numpy raise all kinds; the next may do better
                self._note_failure(error)
            self._task.progress()

    async def _repeat(self, watch: Watch, seen: Seen) -> str:
        """Repeat a search and export what comes of it; return the outcome."""
        if not self._budget.is_full:
            return "budget"
        try:
            return await self._compare(watch, seen)
        finally:
            spent_s, self._spent_s = self._spent_s, 0.0
            self._budget.spend(spent_s)
            metrics.recall_probe_cpu_seconds_total.inc(spent_s)

    async def _compare(self, watch: Watch, seen: Seen) -> str:
        cuts = [k for k in CUTS if k <= watch.limit]
        exactly, is_more = ExactPass(watch, seen, max(cuts)), True
        while is_more:
            if not await self._is_room():
                return "busy"
            if not self._has(watch.view):
                return "gone"
            is_more = await self._run(exactly.step)
        found = await self._run(partial(exactly.agreement, cuts))
        if not self._has(watch.view):  # or metrics would have its name for ever
            return "gone"
        for k, agreement in found.items():
            self._export(watch.view, watch.modality, k, agreement)
        return "compared"

    async def _is_room(self) -> bool:
        """Wait until no live search waits for a thread, or return False."""
        for _ in range(self._looks):
            if self._searches.has_room:
                return True
            await asyncio.sleep(LOOK_S)
        return False

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._measured, work)

    def _measured(self, work: Callable[[], Result]) -> Result:
        begun_s = self._cpu_s()
        try:
            return work()
        finally:
            self._spent_s += self._cpu_s() - begun_s

    def _export(self, view: View, modality: Modality, k: int, agreement: Agreement) -> None:
        labels = self._label(view.name), modality.value, str(k)
        metrics.recall_found_total.labels(*labels).inc(agreement.found)
        metrics.recall_wanted_total.labels(*labels).inc(agreement.wanted)

    def _note_failure(self, error: Exception) -> None:
        _note("failed")
        if type(error) not in self._logged:  # there may be one for every search that is chosen
            self._logged.add(type(error))
            logger.warning("a search could not be repeated exactly", exc_info=error)


def _note(outcome: str) -> None:
    metrics.recall_probes_total.labels(outcome).inc()
