"""One connection of an ingest: its window, what it sends again, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.errors import Draining, MessageTooLarge, Unavailable


@dataclass(slots=True)
class Batch:
    """Candidates on their way."""

    sequence: int
    message: pb.IngestRequest
    numbers: list[int]
    """Places of its candidates in the ingest."""
    through: int
    """Candidates of the ingest up to the end of this batch."""


class Silence:
    """Watchdog of a connection: ends what it is around when the gateway does not answer.

    To be away it has to say nothing for so long, while it has something to say. gRPC's keepalive
    finds machines that are away, and no process that hangs.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s, self._timeout = limit_s, asyncio.timeout(limit_s)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            problem = f"the gateway has said nothing for {self._limit_s:g} s"
            raise Unavailable(problem) from None

    def begin(self) -> None:
        """Wait for an answer from now on, or still."""
        if self._timeout.when() is None:
            self.broken(is_awaited=True)

    def broken(self, *, is_awaited: bool) -> None:
        """Take note of an answer; more are to come, or else none is due."""
        until = asyncio.get_running_loop().time() + self._limit_s
        self._timeout.reschedule(until if is_awaited else None)


@dataclass
class Link:
    """One connection of an ingest."""

    call: Any
    resend: list[Batch]
    """Batches that an earlier connection sent and that were not acknowledged."""
    silence: Silence
    free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """Batches that may still be sent before one is acknowledged."""
    held: int = 0
    """Batches of the window that may only be sent once one is acknowledged."""
    sender: asyncio.Task[None] | None = None
    draining: bool = False

    async def open(self, opening: pb.IngestOpen) -> None:
        """Send the first message, or find the call ended, as reading from it tells.

        A first write waits until the call is under way, and gRPC wakes no write of one that is
        cancelled before, by the close of its channel for one.
        """
        writing = asyncio.ensure_future(self.call.write(pb.IngestRequest(open=opening)))
        self.call.add_done_callback(lambda _: writing.cancel())
        try:
            await asyncio.wait([writing])
        finally:
            writing.cancel()
        if not writing.cancelled():
            writing.result()

    def begin(self, opened: pb.IngestOpened, sending: Coroutine[Any, Any, None]) -> None:
        """Send, with up to a window of batches unacknowledged, or one of those sent again.

        A write that is under way when the gateway ends the call hides what it says; with one batch
        there is none, so that what broke one connection is heard on the next.

        Raises:
            MessageTooLarge: a batch that an earlier connection sent does not fit into this one.
        """
        for size in (batch.message.ByteSize() for batch in self.resend):
            if size > opened.max_message_bytes:
                limit = opened.max_message_bytes
                raise MessageTooLarge(f"a batch is {size} bytes; now at most {limit} are taken")
        self.held = opened.window - 1
        self.free.release()
        if not self.resend:
            self.widen()
        self.sender = asyncio.create_task(sending)

    def widen(self) -> None:
        """Let the whole window be used."""
        for _ in range(self.held):
            self.free.release()
        self.held = 0

    def stop_sending(self) -> None:
        """Send nothing more; acknowledgements may still come until the stream ends.

        The sender ends by itself: to cancel it in the midst of a write would end the whole call.
        """
        self.draining = True
        self.free.release()

    async def finish(self) -> None:
        """Raise what kept the sender from sending everything."""
        if self.draining:
            raise Draining("the gateway is shutting down")
        if self.sender is not None:
            await self.sender

    async def close(self) -> None:
        """End the connection."""
        if self.sender is not None:
            self.sender.cancel()
            await asyncio.gather(self.sender, return_exceptions=True)
        self.call.cancel()
