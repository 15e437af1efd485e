"""Admission control with fair queueing: callers share a capacity by cost, whatever they ask for.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each turn starts, in virtual time,
where its caller's last one ended, and no earlier than what is let in now; the earliest start is
next. So a caller's backlog stands behind itself alone.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count

from mmesh.errors import DeadlineExceeded, Overloaded
from services.gateway import metrics

_MOST_REMEMBERED = 1024
"""Callers after which those are forgotten whose last turn has passed."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what that costs in searches of the plainest kind."""

    name: str
    cost: float = 1.0


NOBODY = Caller("")


@dataclass(slots=True, order=True)
class _Turn:
    start: float
    number: int
    cost: float = field(compare=False)
    granted: asyncio.Future[None] = field(compare=False)
    is_over: bool = field(default=False, compare=False)


class FairGate:
    """Lets work in while there is capacity; what waits is let in by turns of its callers.

    Args:
        capacity: how much cost may be inside at a time; what costs more goes in alone.
        working_s: what is inside for longer waits for something more than it works, and no longer
            counts: nobody can close the gate by searches that hang.
    """

    def __init__(self, capacity: float, working_s: float = math.inf) -> None:
        self._capacity = self._free = float(capacity)
        self._working_s = working_s
        self._now = 0.0
        self._ends: dict[str, float] = {}  # of each caller's last turn, in virtual time
        self._waiting: list[_Turn] = []
        self._numbers = count()

    @asynccontextmanager
    async def turn(
        self, caller: str, cost: float = 1.0, within_s: float | None = None
    ) -> AsyncIterator[None]:
        """Wait for a turn of the caller, and hold it.

        Raises:
            DeadlineExceeded: it did not come within so many seconds.
        """
        exact = math.ceil(16 * cost) / 16  # of which sums are exact, too
        turn = self._line_up(caller, min(exact, self._capacity))
        self._let_in()
        try:
            try:
                async with asyncio.timeout(within_s):
                    await turn.granted
            except TimeoutError:
                raise DeadlineExceeded("the time was up before it was its turn") from None
            yield
        finally:
            self._end(turn)

    def _end(self, turn: _Turn) -> None:
        """Give its room back, once; there is none if it went away while it waited."""
        if not turn.is_over and not turn.granted.cancelled():
            self._free += turn.cost
        turn.is_over = True
        self._let_in()

    def _line_up(self, caller: str, cost: float) -> _Turn:
        start = max(self._now, self._ends.get(caller, 0.0))
        if caller not in self._ends and len(self._ends) >= _MOST_REMEMBERED:
            self._ends = {one: end for one, end in self._ends.items() if end > self._now}
        self._ends[caller] = start + cost
        granted = asyncio.get_running_loop().create_future()
        turn = _Turn(start, next(self._numbers), cost, granted)
        heapq.heappush(self._waiting, turn)
        return turn

    def _let_in(self) -> None:
        """Let in whose turn it is, as far as there is room: the first is not overtaken."""
        while self._waiting:
            first = self._waiting[0]
            if first.granted.done():  # nobody waits for it any more
                heapq.heappop(self._waiting)
                continue
            if first.cost > self._free:
                return
            heapq.heappop(self._waiting)
            self._free -= first.cost
            self._now = max(self._now, first.start)
            first.granted.set_result(None)
            if self._working_s < math.inf:
                first.granted.get_loop().call_later(self._working_s, self._end, first)
        if self._free == self._capacity:
            self._ends.clear()


class Admission:
    """Counts what callers have here, waiting or under way, and refuses what is too much."""

    def __init__(self, most: int) -> None:
        """Take how much may be here; callers below their share are let in up to twice of it."""
        self._most = most
        self._here: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """How much is here."""
        return self._here.total()

    @contextmanager
    def of(self, caller: str, number: int) -> Iterator[None]:
        """Count `number` more of a caller, as long as they are here.

        Raises:
            Overloaded: there is no room, and the caller has its share of it already.
        """
        self.enter(caller, number)
        metrics.running_searches.set(self.total)
        try:
            yield
        finally:
            self.leave(caller, number)
            metrics.running_searches.set(self.total)

    def enter(self, caller: str, number: int) -> None:
        """Count `number` more; raises what `of` does."""
        mine, share = self._here[caller], self._most / len(self._here.keys() | {caller})
        after = self.total + number
        is_greedy = mine and mine + number > share
        if self.total and after > (self._most if is_greedy else 2 * self._most):
            raise Overloaded(f"{self.total} searches are here already, {mine} of this caller")
        self._here[caller] += number

    def leave(self, caller: str, number: int) -> None:
        """Count them off."""
        self._here[caller] -= number
        if not self._here[caller]:
            del self._here[caller]
