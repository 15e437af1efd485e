"""Flow control by bytes: the batches of all ingests that are under way share a bounded memory.

Each is held as candidates, as what encoders are asked and as what is stored, for as long as one of
those is away. Its turn comes in the order of arrival; a small one never waits.
"""

from __future__ import annotations

import asyncio
from collections import deque

from mmesh.errors import Overloaded
from mmesh.serving.request_room import SMALL_BYTES


class ByteWindow:
    """Lets batches in while those under way have no more than `most_bytes` together.

    Args:
        most_bytes: of those under way; one that finds none under way is let in whatever its size.
        most_waiting_bytes: of those that wait for their turn.
    """

    def __init__(self, most_bytes: int, most_waiting_bytes: int) -> None:
        self._most_bytes, self._most_waiting_bytes = most_bytes, most_waiting_bytes
        self.held_bytes = 0
        self.waiting_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> int:
        """Wait for the turn of a batch, and return the bytes to give back in the end.

        Raises:
            Overloaded: too much waits already.
        """
        if size <= SMALL_BYTES:
            return 0
        if self._waiting or not self._fits(size):
            await self._wait(size)
        else:
            self.held_bytes += size
        return size

    def give_back(self, taken: int) -> None:
        """Let others in."""
        self.held_bytes -= taken
        while self._waiting and self._fits(self._waiting[0][0]):
            size, turn = self._waiting.popleft()
            self.waiting_bytes -= size
            if not turn.done():
                self.held_bytes += size
                turn.set_result(None)

    def _fits(self, size: int) -> bool:
        return not self.held_bytes or self.held_bytes + size <= self._most_bytes

    async def _wait(self, size: int) -> None:
        if self.waiting_bytes and self.waiting_bytes + size > self._most_waiting_bytes:
            raise Overloaded(
                f"batches of {self.held_bytes:,} bytes are under way, and of "
                f"{self.waiting_bytes:,} wait; at most {self._most_waiting_bytes:,} may"
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = size, turn
        self._waiting.append(waiter)
        self.waiting_bytes += size
        try:
            await turn
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                self.waiting_bytes -= size
                self.give_back(0)  # those behind it may be smaller
            elif not turn.cancelled():  # let in at the same moment
                self.give_back(size)
            raise
