"""The same work asked for twice at a time is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class Ticket(Generic[Result]):
    """An outcome that is to come, and who waits for it; needs a running event loop."""

    expires_at: float = float("inf")
    """Moment on the monotonic clock after which nobody wants the outcome."""
    outcome: asyncio.Future[Result] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    callers: int = 1

    def is_wanted(self, now: float) -> bool:
        """Tell whether somebody still waits; may be asked from any thread."""
        return now < self.expires_at and not self.outcome.done()

    def settle(self, result: Result) -> None:
        """Give the outcome to whoever still waits."""
        if not self.outcome.done():
            self.outcome.set_result(result)

    def fail(self, error: Exception) -> None:
        """Give the error to whoever still waits."""
        if not self.outcome.done():
            self.outcome.set_exception(error)
            self.outcome.exception()  # seen: asyncio is not to complain if nobody looks


class Coalescer(Generic[Result]):
    """Hands out tickets by key; callers who come while there is no outcome yet share one."""

    def __init__(self) -> None:
        self._tickets: dict[Hashable, Ticket[Result]] = {}

    def join(self, key: Hashable, expires_at: float) -> tuple[Ticket[Result], bool]:
        """Return the ticket for `key` and whether it is new: whoever gets a new one does the work.

        Every caller waits for `outcome` without cancelling it, and calls `leave` in the end.
        """
        ticket = self._tickets.get(key)
        if ticket is None or ticket.outcome.done():
            ticket = self._tickets[key] = Ticket(expires_at)
            return ticket, True
        ticket.callers += 1
        ticket.expires_at = max(ticket.expires_at, expires_at)
        return ticket, False

    def leave(self, key: Hashable, ticket: Ticket[Result]) -> None:
        """Wait no longer; the outcome is cancelled when its last caller has gone."""
        ticket.callers -= 1
        if ticket.callers:
            return
        ticket.outcome.cancel()
        if self._tickets.get(key) is ticket:
            del self._tickets[key]
