"""Batched calls, repeated with backoff while the mesh is away or too busy for a moment."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic, TypeVar, cast

from mmesh.aio import AsyncClient
from mmesh.errors import (
    CollectionFull,
    DeadlineExceeded,
    MessageTooLarge,
    MmeshError,
    ResourceExhausted,
    Unavailable,
)
from mmesh.evaluation.options import Effort
from mmesh.filters import MAX_BATCH_PARTS, parts_of
from mmesh.search import Search, SearchResult
from mmesh.values.patience import Patience

MAX_BATCH = 256
"""Searches, or inputs of an encoder, that fit into a call."""
_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_LATE_ATTEMPTS = 3
"""Times that an item may miss its deadline until it counts as refused; not those it was away."""
Outcome = SearchResult | MmeshError
Item = TypeVar("Item")
Answer = TypeVar("Answer")


class PatientCalls(Generic[Item, Answer]):
    """Asks for items until each has an outcome that will not change by asking again.

    Args:
        call: makes one call; returns an answer or an error for each item, in order.
        effort: for how long to go on without any answer.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Item]], Awaitable[list[Answer | MmeshError]]],
        effort: Effort,
    ) -> None:
        self._one_call = call
        self._patience = Patience(effort.patience_s)

    def begin(self) -> None:
        """Begin anew: what failed before does not count."""
        self._patience.answered()

    async def outcomes(self, items: Sequence[Item]) -> list[Answer | MmeshError]:
        """Return an outcome for each item; those that may yet succeed are repeated.

        Raises:
            MmeshError: nothing was answered for `patience_s` seconds, or never will be.
        """
        outcomes: dict[int, Answer | MmeshError] = {}
        pause, late = _PAUSE_S, Counter[int]()
        while left := [number for number in range(len(items)) if number not in outcomes]:
            for number, outcome in zip(left, await self._call(items, left), strict=True):
                late[number] += isinstance(outcome, DeadlineExceeded)
                if late[number] >= _LATE_ATTEMPTS or not _passing(outcome):
                    outcomes[number] = outcome
                    self._patience.answered()
                    pause = _PAUSE_S
                elif self._patience.is_over_after_failure():
                    raise cast(MmeshError, outcome)
            if len(outcomes) < len(items):
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        return [outcomes[number] for number in range(len(items))]

    def _fit(self, items: Sequence[Item]) -> bool:
        """Tell whether one call takes so many items; it may yet be too large for a message."""
        return len(items) <= MAX_BATCH

    async def _call(self, items: Sequence[Item], numbers: list[int]) -> list[Answer | MmeshError]:
        """Return outcomes of one call, or of several when they do not fit into one."""
        if len(numbers) > 1 and not self._fit([items[number] for number in numbers]):
            return await self._in_halves(items, numbers)
        try:
            return await self._one_call([items[number] for number in numbers])
        except MessageTooLarge as error:
            if len(numbers) > 1:
                return await self._in_halves(items, numbers)
            return [error]
        except MmeshError as error:
            if not _passing(error):
                raise
            return [error] * len(numbers)

    async def _in_halves(
        self, items: Sequence[Item], numbers: list[int]
    ) -> list[Answer | MmeshError]:
        half = len(numbers) // 2
        first = await self._call(items, numbers[:half])
        return first + await self._call(items, numbers[half:])


class PatientSearches(PatientCalls[Search, SearchResult]):
    """Asks searches, each until its outcome will not change."""

    def __init__(self, client: AsyncClient, effort: Effort) -> None:
        super().__init__(partial(client.search_batch, timeout=effort.timeout_s), effort)

    def _fit(self, items: Sequence[Search]) -> bool:
        filters = {search.filter for search in items if search.filter is not None}
        return super()._fit(items) and parts_of(filters) <= MAX_BATCH_PARTS


def _passing(outcome: object) -> bool:
    """Tell whether the same item may succeed a little later."""
    passing = isinstance(outcome, Unavailable | ResourceExhausted | DeadlineExceeded)
    return passing and not isinstance(outcome, CollectionFull | MessageTooLarge)
