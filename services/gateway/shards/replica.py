"""Health tracking of one index process: what it said last, and a circuit breaker for its calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mmesh.api.index.v1 import collection_service_pb2_grpc, index_pb2, index_pb2_grpc
from mmesh.errors import MmeshError, Unavailable
from mmesh.serving import tracing
from mmesh.serving.backoff import Pauses
from mmesh.serving.deadline import Deadline
from mmesh.serving.supervision import Supervised
from mmesh.wire.encoding import taking_bytes
from mmesh.wire.transport import open_channel
from services.gateway.circuit_breaker import CircuitBreaker
from services.gateway.rpc import answer_of, options_for
from services.gateway.shards.search_channel import Reply, SearchChannel

logger = logging.getLogger(__name__)

ASK_S = 1.0
"""Seconds that a process may take to say what it holds."""
LOOK_S, LOOK_AGAIN_S = 1.0, 0.2
"""Seconds between questions to a process that is well, and to one that is not."""
SPACING_S = 0.02
"""Seconds between questions, however many searches wish to know."""
STREAMED_BYTES = 1 << 16
"""Larger searches are calls of their own: they would keep the others on their stream waiting."""
PAUSES = Pauses(first_s=LOOK_AGAIN_S, longest_s=5.0)
"""Pauses after a defect met a watcher: a process that is not watched is soon not searched."""
NEVER = sys.maxsize
"""Failures of a watcher that make the gateway unwell: one index process must not take it out."""
LINGER_S = 30.0
"""Seconds for which searches that began before a process was taken out may still call it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a process says of itself."""

    shard: int
    shard_count: int
    ready: bool
    replica: str
    """Names the process for as long as it runs."""
    candidates: int
    lag: int


class Replica:
    """An index process at one address; once started, what is known of it is kept fresh.

    `on_change` is called when it may or may no longer be searched, or holds another shard.
    """

    def __init__(self, address: str, on_change: Callable[[], None]) -> None:
        self.address = address
        self._channel = open_channel(address)
        self.index = index_pb2_grpc.IndexServiceStub(taking_bytes(self._channel))
        self.collections = collection_service_pb2_grpc.CollectionServiceStub(self._channel)
        self._searches = SearchChannel(self.index)
        self.facts: Facts | None = None
        """What it said last, even if it is silent by now."""
        self._circuit = CircuitBreaker(least_s=ASK_S)
        self._circuit.open(Unavailable("it was not asked yet"))
        self._on_change = on_change
        self._watcher = Supervised(
            "index process health", self._watch, unwell_after=NEVER, backoff=PAUSES
        )
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = -SPACING_S
        self._look = asyncio.Event()

    @property
    def error(self) -> MmeshError | None:
        """Why it is not trusted; None when it is."""
        return self._circuit.error

    @property
    def is_usable(self) -> bool:
        """Whether it answers, and holds all of its shard."""
        return self._circuit.is_closed and self.facts is not None and self.facts.ready

    @property
    def place(self) -> tuple[int, int] | None:
        """Its shard and the number of shards, as it said last; None if it never did."""
        return (self.facts.shard, self.facts.shard_count) if self.facts else None

    def start(self) -> None:
        """Begin to ask from time to time, and at once when a call has failed."""
        self._watcher.start()

    async def close(self) -> None:
        """Close the channel; calls that still run are cut off."""
        await self._watcher.aclose()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})
        await self._searches.close()
        await self._channel.close()

    async def retire(self) -> None:
        """Ask no more, and close the channel once nobody that knew the process can need it."""
        try:
            await self._watcher.aclose()
            await asyncio.sleep(LINGER_S)
        finally:
            await self.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.shield(self.ask())
            self._watcher.progress()
            with contextlib.suppress(TimeoutError):
                pause = LOOK_S if self.is_usable else LOOK_AGAIN_S
                async with asyncio.timeout(pause):  # wait_for may swallow that this is cancelled
                    await self._look.wait()
            self._look.clear()

    def ask(self) -> asyncio.Task[None]:
        """Return the task, shared by all who wait for it, that asks the process what it holds."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return self._asking

    async def _ask(self) -> None:
        await asyncio.sleep(max(0.0, self._asked_at + SPACING_S - time.monotonic()))
        request = index_pb2.GetShardRequest()
        try:
            call = self.index.GetShard(request, **options_for(Deadline.after(ASK_S)))
            facts = _facts_of(await answer_of(call, f"the index process at {self.address}"))
        except MmeshError as error:
            with self._telling_of_changes():
                self._circuit.open(error)
        else:
            with self._telling_of_changes():
                self.facts = facts
                self._circuit.close()
        finally:
            self._asked_at = time.monotonic()

    async def search(self, request: index_pb2.SearchRequest, deadline: Deadline) -> Reply:
        """Search the process: on the stream, unless the search is large or traced.

        Raises:
            grpc.aio.AioRpcError: the call failed.
            MmeshError: the search did.
        """
        if tracing.is_tracing() or request.ByteSize() > STREAMED_BYTES:
            response = await self.index.Search(request, **options_for(deadline))
            return response, response.lists
        return await self._searches.search(request, deadline)

    def blame(self, error: MmeshError, given_s: float) -> None:
        """Take note that a call failed which had `given_s` seconds.

        A process that does not answer is not trusted until it does again. One that was only given
        a moment is asked first.
        """
        with self._telling_of_changes():
            is_in_doubt = self._circuit.note(error, given_s)
        if is_in_doubt:
            self._look.set()

    @contextlib.contextmanager
    def _telling_of_changes(self) -> Iterator[None]:
        before = (self.is_usable, self.place)
        yield
        if (self.is_usable, self.place) != before:
            extra = {"address": self.address, "usable": self.is_usable, "place": self.place}
            logger.info("index process changed", extra=extra)
            self._on_change()


def _facts_of(reply: index_pb2.GetShardResponse) -> Facts:
    if not 0 <= reply.shard < reply.shard_count:
        raise Unavailable(f"it says that it holds shard {reply.shard} of {reply.shard_count}")
    return Facts(
        reply.shard, reply.shard_count, reply.ready, reply.replica, reply.candidates, reply.lag
    )
