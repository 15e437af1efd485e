"""The client's side of an ingest stream: windows, acknowledgements, and going on after a break."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from mmesh import wire
from mmesh.api.candidate.v1 import candidate_pb2
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.api.gateway.v1 import gateway_pb2_grpc as rpc
from mmesh.candidates import Candidate, Embedded, IngestReport, Rejected, check_candidate
from mmesh.errors import (
    CollectionFull,
    Draining,
    InvalidVector,
    MessageTooLarge,
    MmeshError,
    ResourceExhausted,
    Unavailable,
)
from mmesh.vectors import DataType
from mmesh.wire.errors import error_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BATCH_BYTES = 8 << 20
"""Bytes after which a batch is sent."""
MAX_MESSAGE_BYTES, MESSAGE_RESERVE = 64 << 20, 1024
"""Bytes of a message until the server says its own limit, and what a batch needs beside."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an ingest has come: candidates stored and refused so far."""

    stored: int
    rejected: int
    settled: int
    """The first so many candidates are all stored or refused: an ingest may go on from there."""


@dataclass(slots=True)
class _Batch:
    sequence: int
    message: pb.IngestRequest
    through: int
    """Candidates of the ingest up to the end of this batch."""


@dataclass
class _Link:
    """One connection of an ingest."""

    call: Any
    resend: list[_Batch]
    """Batches that an earlier connection sent and that were not acknowledged."""
    free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """Batches that may still be sent before one is acknowledged."""
    sender: asyncio.Task[None] | None = None
    draining: bool = False

    def begin(self, window: int, sending: Coroutine[Any, Any, None]) -> None:
        """Send, with up to `window` batches unacknowledged."""
        for _ in range(window):
            self.free.release()
        self.sender = asyncio.create_task(sending)

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


@dataclass
class Ingest:
    """One ingest over as many connections as it takes."""

    stub: rpc.RetrievalServiceAsyncStub
    collection: str
    candidates: AsyncIterator[Candidate | Embedded]
    batch_size: int
    patience_s: float
    model_fingerprint: str = ""
    """Model of the vectors of `Embedded` candidates."""
    data_type: DataType = DataType.FLOAT32
    """What their vectors travel as."""
    fill: bool = False
    """Only fill the collection up from its mirror."""
    ingest_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        """Begin at the first batch."""
        self._wanted = self.batch_size  # by the caller; a server that is behind allows fewer
        self._sent: deque[_Batch] = deque()  # sent and not acknowledged, in order
        self._sequence = 0
        self._exhausted = False
        self._failure: Exception | None = None  # of the source of candidates
        self._max_bytes = MAX_MESSAGE_BYTES
        self._taken = self._settled = self._stored = 0
        self._token = ""
        self._rejected: dict[tuple[int, int], Rejected] = {}
        self._refused_here: list[Rejected] = []
        self._carried: _Item | None = None  # taken from the source, not yet in a batch
        self._progress_at = time.monotonic()

    async def run(self, on_progress: Callable[[Progress], None]) -> IngestReport:
        """Send everything and return the report.

        What the source of candidates raises is raised once all before it is acknowledged.

        Raises:
            Unavailable: nothing went forward for `patience_s` seconds.
        """
        pause = _FIRST_PAUSE_S
        self._progress_at = time.monotonic()
        while not (self._exhausted and not self._sent):
            before = self._stored, len(self._sent)
            try:
                await self._stream(on_progress)
            except MmeshError as error:
                passing = isinstance(error, Unavailable | ResourceExhausted)
                if not passing or isinstance(error, CollectionFull):
                    raise
                if time.monotonic() - self._progress_at > self.patience_s:
                    raise
                went_on = before != (self._stored, len(self._sent))
                pause = _FIRST_PAUSE_S if went_on else min(2 * pause, _LONGEST_PAUSE_S)
                await asyncio.sleep(pause)
        if self._failure is not None:
            raise self._failure
        return self._report()

    def _progress(self) -> Progress:
        refused = len(self._rejected) + len(self._refused_here)
        return Progress(self._stored, refused, self._settled)

    def _report(self) -> IngestReport:
        rejected = (*self._rejected.values(), *self._refused_here)
        return IngestReport(self._stored, rejected, self._token)

    async def _stream(self, on_progress: Callable[[Progress], None]) -> None:
        """Open a stream, send again what was not acknowledged, then go on."""
        link = _Link(self.stub.Ingest(), list(self._sent))
        try:
            opening = pb.IngestOpen(
                collection=self.collection, ingest_id=self.ingest_id, fill=self.fill
            )
            await link.call.write(pb.IngestRequest(open=opening))
            async for event in link.call:
                self._take(event, link)
                on_progress(self._progress())
            await link.finish()
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from None
        except asyncio.InvalidStateError:  # the call ended while it was written to
            raise Unavailable("the call ended while it was written to") from None
        finally:
            await link.close()

    def _take(self, event: pb.IngestResponse, link: _Link) -> None:
        match event.WhichOneof("event"):
            case "opened":
                self._max_bytes = event.opened.max_message_bytes - MESSAGE_RESERVE
                self.batch_size = min(self._wanted, event.opened.max_candidates)
                link.begin(event.opened.window, self._send(link))
            case "rejected":
                for one in event.rejected.candidates:
                    key, error = (event.rejected.sequence, one.number), one.problem
                    self._rejected[key] = Rejected(one.id, wire.problem_from_pb(error))
            case "slow_down":
                self.batch_size = min(self._wanted, event.slow_down.max_candidates)
            case "draining":
                link.stop_sending()
            case "ack":
                self._acknowledge(event.ack, link)

    def _acknowledge(self, ack: pb.IngestAck, link: _Link) -> None:
        self._progress_at = time.monotonic()
        while self._sent and self._sent[0].sequence <= ack.through_sequence:
            self._settled = self._sent.popleft().through
            link.free.release()
        self._stored += ack.stored
        self._token = ack.token or self._token

    async def _send(self, link: _Link) -> None:
        for batch in link.resend:
            await link.free.acquire()
            if link.draining:
                return
            await link.call.write(batch.message)
        while not self._exhausted:
            await link.free.acquire()
            new = None if link.draining else await self._next_batch()
            if new is None:
                break
            self._sent.append(new)
            await link.call.write(new.message)
        await link.call.done_writing()

    async def _next_batch(self) -> _Batch | None:
        """Return the next candidates that can be sent at all; note those that cannot."""
        chosen: list[_Item] = []
        size = 0
        while len(chosen) < self.batch_size and size < MAX_BATCH_BYTES:
            item = await self._next_item()
            if item is None:
                break
            size += item.size
            if chosen and (size > self._max_bytes or item.form != chosen[0].form):
                self._carried = item  # for the next batch
                break
            chosen.append(item)
        if not chosen:
            return None
        self._sequence += 1
        through = self._taken - (self._carried is not None)
        return _Batch(self._sequence, self._request_of(chosen), through)

    def _request_of(self, chosen: Sequence[_Item]) -> pb.IngestRequest:
        batch = pb.IngestBatch(sequence=self._sequence, candidates=[i.message for i in chosen])
        rows = [item.vector for item in chosen if item.vector is not None]
        if rows:
            import numpy as np

            batch.vectors.CopyFrom(wire.directions_to_pb(np.stack(rows), self.data_type))
            batch.model_fingerprint = self.model_fingerprint
        return pb.IngestRequest(batch=batch)

    async def _next_item(self) -> _Item | None:
        """Return the next candidate that can be sent, or None after the last."""
        if self._carried is not None:
            item, self._carried = self._carried, None
            return item
        while (taken := await self._take_candidate()) is not None:
            candidate = taken.candidate if isinstance(taken, Embedded) else taken
            try:
                return self._item_of(candidate, taken)
            except MmeshError as error:
                self._refused_here.append(Rejected(candidate.id, error))
        return None

    async def _take_candidate(self) -> Candidate | Embedded | None:
        try:
            following = await anext(self.candidates, None)
        except Exception as failure:  # whatever the caller's source raises, it gets back
            self._failure, following = failure, None
        if following is None:
            self._exhausted = True
        else:
            self._taken += 1
        return following

    def _item_of(self, candidate: Candidate, taken: Candidate | Embedded) -> _Item:
        check_candidate(candidate, "candidate")
        message, vector = wire.candidate_to_pb(candidate), None
        size = message.ByteSize()
        if isinstance(taken, Embedded):
            import numpy as np

            vector = np.asarray(taken.vector)
            if vector.ndim != 1 or not np.isfinite(vector).all():
                raise InvalidVector("vector", "is not a row of finite numbers")
            size += len(vector) * self.data_type.width
        if size > self._max_bytes:
            raise MessageTooLarge(f"is {size} bytes; at most {self._max_bytes} fit into a message")
        return _Item(message, vector, size)


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    """A candidate that can be sent."""

    message: candidate_pb2.Candidate
    vector: NDArray[Any] | None
    size: int
    """Bytes on the wire."""

    @property
    def form(self) -> tuple[int, str]:
        """Width and element type of its vector, which are the same all over a batch."""
        return (0, "") if self.vector is None else (len(self.vector), self.vector.dtype.name)
