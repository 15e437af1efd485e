"""Searches that are probed, over rows whose nearest ones are known."""

from __future__ import annotations

import itertools
import json

import numpy as np

from mmesh.content import Modality
from mmesh.filters import Compare, Operator
from services.index import metrics
from services.index.log.rows import Rows
from services.index.segments.segment import Segment
from services.index.upkeep.cpu_budget import CpuBudget
from services.index.upkeep.recall_probe import MAX_WAITING
from services.index.view.searcher import PendingSearch
from services.index.view.view import View

DIM, ROWS, QUERIES = 16, 6_000, 200
TEXT = (Modality.TEXT,)
EVEN = Compare("even", Operator.EQUAL, True)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def points(n, seed):
    """Return vectors in clusters, as those of embeddings are."""
    centres = np.random.default_rng(0).normal(size=(100, DIM))
    rng = np.random.default_rng(seed)
    return unit(centres[rng.integers(100, size=n)] + rng.normal(size=(n, DIM)))


IDS = [f"id{n}" for n in range(ROWS)]
VECTORS, ASKED = points(ROWS, seed=1), points(QUERIES, seed=2)


def view_of(*folders, name="probed", delta_rows=64):
    segments = [Segment.open(folder) for folder in folders]
    return View(name, "e", DIM, delta_rows, segments={Modality.TEXT: segments})


def write(view, ids, vectors, deleted=False):
    n, first = len(ids), view.applied + 1
    attributes = ["" if deleted else json.dumps({"even": True})] * n
    seqs, gone = np.arange(first, first + n), np.full(n, deleted)
    view.apply(Rows(ids, list(TEXT) * n, attributes, seqs, gone, vectors), first + n - 1)


def value(counter, **labels):
    """Return what one counter says; to ask the whole registry takes a hundred times as long."""
    samples = counter.collect()[0].samples
    found = [one.value for one in samples if one.name.endswith("_total") and one.labels == labels]
    return found[0] if found else 0.0


OUTCOMES = ("compared", "busy", "budget", "changed", "gone", "failed")


def outcomes():
    return {one: int(value(metrics.recall_probes_total, outcome=one)) for one in OUTCOMES}


class Probed:
    """Searches on a view, each of which is probed unless told otherwise."""

    def __init__(self, searcher, until, room, name="probed"):
        self.searcher, self._until, self.room, self.name = searcher, until, room, name
        self._before = outcomes()
        self._counted = self._counts()

    async def search(self, view, query=ASKED[:1], limit=10, condition=None):
        work = PendingSearch(view, query, TEXT, limit, condition)
        return (await self.searcher.search(work)).lists[0][0]

    async def search_all(self, view, limit=100, condition=None):
        """Search for all that is asked, and have each search compared."""
        found = []
        for number in range(QUERIES):
            query = ASKED[number : number + 1]
            found.append(await self.search(view, query, limit, condition))
            if number % MAX_WAITING == 0:
                await self.done(compared=number + 1)
        await self.done(compared=QUERIES)
        return found

    @property
    def outcomes(self):
        """What became of probes since the beginning."""
        rises = {one: now - self._before[one] for one, now in outcomes().items()}
        return {one: rise for one, rise in rises.items() if rise}

    async def done(self, **wanted):
        await self._until(lambda: self.outcomes == wanted)

    def _counts(self):
        def of(counter, k):
            return value(counter, collection=self.name, modality="text", k=str(k))

        both = metrics.recall_found_total, metrics.recall_wanted_total
        return {k: np.array([of(one, k) for one in both]) for k in (1, 10, 100)}

    def recall(self, k):
        """Return the recall since the beginning, as a rate of one counter by that of the other."""
        found, wanted = self._counts()[k] - self._counted[k]
        return found / wanted


class Room:
    """A searcher's leave to repeat searches, which can be taken back."""

    def __init__(self, searcher):
        self._searcher, self.is_there, self.looks = searcher, True, 0

    @property
    def watcher(self):
        return self._searcher.watcher

    @watcher.setter
    def watcher(self, watcher):
        self._searcher.watcher = watcher

    @property
    def has_room(self):
        self.looks += 1
        return self.is_there


def always_full():
    return CpuBudget(1.0, itertools.count(1000, 1000).__next__)
