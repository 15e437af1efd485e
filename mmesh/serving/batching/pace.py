"""How fast the devices work, and so how large a batch may be and how long a caller should wait."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmesh.errors import Overloaded
from mmesh.serving.batching.backlog import BatchShape, Priority

QUERIES_STAY_S = 5.0
"""Queries are expected for so long after the last one."""
BULK_PASSES = 2.0
"""Meanwhile a batch of bulk work may take so many times as long as a batch of queries."""
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 30.0

_KEPT = 0.9
"""Weight of the batches before beside the last one: about ten count."""


@dataclass(slots=True)
class _Average:
    """A ratio of two sums in which old terms fade; 0 as long as there are none."""

    over: float = 0.0
    under: float = 0.0

    def add(self, over: float, under: float) -> None:
        self.over = _KEPT * self.over + over
        self.under = _KEPT * self.under + under

    @property
    def value(self) -> float:
        return self.over / self.under if self.under else 0.0


class Pace:
    """What the last batches tell about the next ones."""

    def __init__(self, shape: BatchShape, devices: int) -> None:
        self._shape = shape
        self._devices = devices
        self._fitting_cost = shape.max_cost
        self._seconds_per_cost = _Average()
        self._query_s = _Average()
        self._last_query = float("-inf")

    def ran(self, priority: Priority, cost: int, seconds: float) -> None:
        """Count a batch of this cost that took so long."""
        self._seconds_per_cost.add(seconds, cost + self._shape.pass_cost)
        if priority is Priority.INTERACTIVE:
            self._query_s.add(seconds, 1)
        if self._fitting_cost < self._shape.max_cost:
            self._fitting_cost += max(1, self._shape.max_cost >> 10)

    def too_large(self, costs: Sequence[int]) -> None:
        """Count a batch that did not fit its device: those that follow are at most half of it."""
        cost = self._shape.cost_of(costs)
        self._fitting_cost = max(1, min(self._fitting_cost, cost // 2))

    def query_came(self) -> None:
        """Expect more queries for a while."""
        self._last_query = time.monotonic()

    @property
    def queries_stay(self) -> bool:
        """Whether more queries are expected, since one came lately."""
        return time.monotonic() - self._last_query < QUERIES_STAY_S

    def seconds(self, cost: int) -> float:
        """Return how long all devices take for this cost; 0 as long as nothing is known."""
        passes = 1 + cost // self._shape.max_cost
        whole = cost + passes * self._shape.pass_cost
        return whole * self._seconds_per_cost.value / self._devices

    def shape(self, priority: Priority) -> BatchShape:
        """Return how large the next batch may be.

        While queries come, bulk work runs in small batches, so that no query waits long for one.
        """
        most = self._fitting_cost
        if priority is Priority.BULK and self.queries_stay and self._query_s.value:
            affordable = BULK_PASSES * self._query_s.value / self._seconds_per_cost.value
            most = min(most, max(1, int(affordable) - self._shape.pass_cost))
        return replace(self._shape, max_cost=most)

    def overloaded(self, why: str, waiting_cost: int) -> Overloaded:
        """Return the refusal of work behind that of `waiting_cost`, with the pause to make."""
        error = Overloaded(why)
        seconds = self.seconds(waiting_cost)
        if seconds:
            error.retry_after_s = min(max(seconds, SHORTEST_PAUSE_S), LONGEST_PAUSE_S)
        return error
