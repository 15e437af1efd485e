"""The client's side of an ingest stream: windows, acknowledgements, and going on after a break."""

from __future__ import annotations

import asyncio
import uuid
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from mmesh import arguments, wire
from mmesh.api.candidate.v1 import candidate_pb2
from mmesh.api.gateway.v1 import gateway_pb2 as pb
from mmesh.api.gateway.v1 import gateway_pb2_grpc as rpc
from mmesh.candidates import (
    MAX_VALUES,
    NOTICE_IDS,
    Candidate,
    Embedded,
    NoticeBoard,
    Rejected,
    WriteReport,
    as_numbers,
    check_candidate,
)
from mmesh.errors import (
    CollectionFull,
    DeadlineExceeded,
    InvalidField,
    InvalidVector,
    MessageTooLarge,
    MmeshError,
    ResourceExhausted,
    Unavailable,
)
from mmesh.values.patience import Patience
from mmesh.vectors import DataType
from mmesh.wire.errors import error_of
from mmesh.wire.ingest_link import Batch, Link, Silence
from mmesh.wire.transport import check_not_cut_off, closed

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BATCH_BYTES = 8 << 20
"""Bytes after which a batch is sent."""
MAX_BATCH_VALUES = MAX_VALUES // 2
"""Values of attributes, and what counts like them, of a batch; one candidate always has fewer."""
MAX_MESSAGE_BYTES, MESSAGE_RESERVE = 64 << 20, 1024
"""Bytes of a message until the server says its own limit, and what a batch needs beside."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
SILENCE_S = 300.0
"""Seconds in which a gateway that has to answer says nothing, and then counts as away. It tries for
60 s and more to encode a batch, and as long to store it."""
_LASTING = (CollectionFull, MessageTooLarge)
"""Refusals that no repetition mends, of a kind that passes."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an ingest has come: candidates stored and refused so far."""

    stored: int
    rejected: int
    settled: int
    """The first so many candidates are all stored or refused: an ingest may go on from there."""
    refused: tuple[Rejected, ...] = ()
    """Those refused since the progress before."""
    token: str = ""
    """Session token of the newest write; empty before the first."""


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
    notice_ids: int = NOTICE_IDS
    """Ids that a notice names."""
    ingest_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        """Begin at the first batch."""
        self._wanted = self.batch_size  # by the caller; a server that is behind allows fewer
        self._sent: deque[Batch] = deque()  # sent and not acknowledged, in order
        self._sequence = 0
        self._batches: asyncio.Queue[Batch | None] = asyncio.Queue(1)  # None: there are no more
        self._batching: asyncio.Task[None] | None = None
        self._exhausted = False
        self._failure: BaseException | None = None  # of the source of candidates
        self._is_ending = False  # the ingest, which then cancels what takes from the source
        self._max_bytes = MAX_MESSAGE_BYTES
        self._taken = self._settled = self._stored = 0
        self._token = ""
        self._rejected: dict[int, Rejected] = {}
        self._untold: list[Rejected] = []  # of the rejected: for the next progress
        self._dim: int | None = None  # of the first vector, which the others must have
        self._ids = array("q")  # hashes, by which those that came again are counted
        self._notices = NoticeBoard(self.notice_ids)
        self._carried: _Item | None = None  # taken from the source, not yet in a batch
        self._patience = Patience(self.patience_s)

    async def run(self, on_progress: Callable[[Progress], None]) -> WriteReport:
        """Send everything and return the report.

        What the source of candidates raises is raised once all before it is acknowledged.

        Raises:
            Unavailable: the mesh did not answer for `patience_s` seconds.
        """
        try:
            await self._send_all(on_progress)
        finally:
            self._is_ending = True
            if self._batching is not None:
                self._batching.cancel()
                await asyncio.gather(self._batching, return_exceptions=True)
        if self._failure is not None:
            raise self._failure
        return self._report()

    async def _send_all(self, on_progress: Callable[[Progress], None]) -> None:
        pause = _FIRST_PAUSE_S
        while not (self._exhausted and not self._sent):
            before = self._stored, len(self._sent)
            try:
                await self._stream(on_progress)
            except MmeshError as error:
                passing = isinstance(error, Unavailable | ResourceExhausted | DeadlineExceeded)
                if not passing or isinstance(error, _LASTING):
                    raise
                if self._patience.is_over_after_failure():
                    raise
                went_on = before != (self._stored, len(self._sent))
                pause = _FIRST_PAUSE_S if went_on else min(2 * pause, _LONGEST_PAUSE_S)
                await asyncio.sleep(pause)

    def _progress(self) -> Progress:
        new, self._untold = tuple(self._untold), []
        return Progress(self._stored, len(self._rejected), self._settled, new, self._token)

    def _report(self) -> WriteReport:
        import numpy as np

        rejected = tuple(sorted(self._rejected.values(), key=lambda one: one.number))
        again = len(self._ids) - len(np.unique(np.frombuffer(self._ids, np.int64)))
        return WriteReport(self._stored, rejected, self._token, self._notices.all(), again)

    async def _stream(self, on_progress: Callable[[Progress], None]) -> None:
        """Open a stream, send again what was not acknowledged, then go on."""
        async with Silence(max(self.patience_s, SILENCE_S)) as silence:
            await self._converse(Link(self._open_call(), list(self._sent), silence), on_progress)

    async def _converse(self, link: Link, on_progress: Callable[[Progress], None]) -> None:
        try:
            opening = pb.IngestOpen(
                collection=self.collection, ingest_id=self.ingest_id, fill=self.fill
            )
            await link.open(opening)
            async for event in link.call:
                self._take(event, link)
                on_progress(self._progress())
                link.silence.broken(is_awaited=self._exhausted or bool(self._sent))
            await link.finish()
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from None
        except asyncio.InvalidStateError:  # the call ended while it was written to
            raise Unavailable("the call ended while it was written to") from None
        except asyncio.CancelledError:
            check_not_cut_off()
            raise
        finally:
            await link.close()

    def _open_call(self) -> Any:
        try:
            return self.stub.Ingest()
        except grpc.aio.UsageError:  # the channel was closed between two connections
            raise closed() from None

    def _take(self, event: pb.IngestResponse, link: Link) -> None:
        match event.WhichOneof("event"):
            case "opened":
                if not self._sent:  # else the answer that counts is an acknowledgement
                    self._patience.answered()
                self._max_bytes = event.opened.max_message_bytes - MESSAGE_RESERVE
                self.batch_size = min(self._wanted, event.opened.max_candidates)
                if self._batching is None:
                    self._batching = asyncio.create_task(self._keep_batching())
                link.begin(event.opened, self._send(link))
            case "rejected":
                self._take_rejected(event.rejected)
            case "noticed":
                self._take_noticed(event.noticed)
            case "slow_down":
                self.batch_size = min(self._wanted, event.slow_down.max_candidates)
            case "draining":
                link.stop_sending()
            case "ack":
                self._acknowledge(event.ack, link)

    def _take_rejected(self, rejected: pb.IngestRejected) -> None:
        for one in rejected.candidates:
            number = self._number_of(rejected.sequence, one.number)
            self._reject(Rejected(one.id, wire.problem_from_pb(one.problem), number))

    def _reject(self, one: Rejected) -> None:
        if one.number not in self._rejected:  # else it was sent again after a break
            self._untold.append(one)
        self._rejected[one.number] = one

    def _take_noticed(self, noticed: pb.IngestNoticed) -> None:
        for one in noticed.notices:
            number = self._number_of(noticed.sequence, one.number)
            self._notices.add(number, one.id, one.reason, one.message)

    def _number_of(self, sequence: int, place: int) -> int:
        """Return the number in the ingest of a candidate of a batch that is not acknowledged."""
        return self._sent[sequence - self._sent[0].sequence].numbers[place]

    def _acknowledge(self, ack: pb.IngestAck, link: Link) -> None:
        self._patience.answered()
        while self._sent and self._sent[0].sequence <= ack.through_sequence:
            self._settled = self._sent.popleft().through
            link.free.release()
        link.widen()
        self._stored += ack.stored
        self._token = ack.token or self._token

    async def _send(self, link: Link) -> None:
        for batch in link.resend:
            await link.free.acquire()
            if link.draining:
                return
            await link.call.write(batch.message)
        while not self._exhausted:
            await link.free.acquire()
            if link.draining:
                break
            if (new := await self._batches.get()) is None:
                self._exhausted = True
                break
            self._sent.append(new)
            link.silence.begin()
            await link.call.write(new.message)
        link.silence.begin()
        await link.call.done_writing()

    async def _keep_batching(self) -> None:
        """Take candidates and hand on batches, as long as the source has any.

        No connection owns this task: to cancel it in the midst of a batch would lose the candidates
        that were taken, and what a cancelled generator would still have given.
        """
        try:
            while (batch := await self._next_batch()) is not None:
                await self._batches.put(batch)
        except BaseException as failure:  # the caller gets back what its source did to this task
            if self._is_own_end(failure):
                raise
            self._failure = self._failure or failure
        await self._batches.put(None)

    async def _next_batch(self) -> Batch | None:
        """Return the next candidates that can be sent at all; note those that cannot."""
        chosen: list[_Item] = []
        ids: set[str] = set()
        size = values = 0
        while len(chosen) < self.batch_size and size < MAX_BATCH_BYTES:
            item = await self._next_item()
            if item is None:
                break
            size, values = size + item.size, values + item.values
            is_over = size > self._max_bytes or values > MAX_BATCH_VALUES
            if chosen and (is_over or item.form != chosen[0].form or item.message.id in ids):
                self._carried = item  # for the next batch, which comes after this one
                break
            chosen.append(item)
            ids.add(item.message.id)
        if not chosen:
            return None
        self._sequence += 1
        through = self._taken - (self._carried is not None)
        numbers = [item.number for item in chosen]
        return Batch(self._sequence, self._request_of(chosen), numbers, through)

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
            given = taken.candidate if isinstance(taken, Embedded) else taken
            number = self._taken - 1
            try:
                candidate = arguments.candidate(given, "candidate")
                item = self._item_of(candidate, taken, number)
            except MmeshError as error:
                self._reject(Rejected(_shown_id(given), error, number))
            except Exception as error:  # whatever an object of the caller's raises when it is read
                problem = f"cannot be read: {type(error).__name__}: {error}"
                unread = InvalidField("candidate", problem)
                self._reject(Rejected(_shown_id(given), unread, number))
            else:
                self._ids.append(hash(candidate.id))
                return item
        return None

    async def _take_candidate(self) -> Candidate | Embedded | None:
        if self._failure is not None:
            return None
        try:
            following = await anext(self.candidates, None)
        except BaseException as failure:  # what was taken before it is sent all the same
            if self._is_own_end(failure):
                raise
            self._failure, following = failure, None
        self._taken += following is not None
        return following

    def _is_own_end(self, failure: BaseException) -> bool:
        """Tell whether the ingest ends what takes candidates, and not their source.

        A source may raise SystemExit, or CancelledError where a task that it awaits was stopped.
        """
        return self._is_ending or isinstance(failure, GeneratorExit)

    def _item_of(self, candidate: Candidate, taken: Candidate | Embedded, number: int) -> _Item:
        check_candidate(candidate, "candidate")
        message, vector = wire.candidate_to_pb(candidate), None
        size = message.ByteSize()
        if isinstance(taken, Embedded):
            vector = self._row_of(taken)
            size += len(vector) * self.data_type.width
        if size > self._max_bytes:
            raise MessageTooLarge(f"is {size} bytes; at most {self._max_bytes} fit into a message")
        return _Item(number, message, vector, size, wire.value_count(candidate))

    def _row_of(self, taken: Embedded) -> NDArray[Any]:
        import numpy as np

        row = as_numbers(taken.vector, "vector")
        if row.ndim != 1 or not row.size or not np.isfinite(row).all():
            raise InvalidVector("vector", "is not a row of finite numbers")
        if self._dim not in (None, len(row)):
            raise InvalidVector("vector", f"has {len(row)} numbers; those before have {self._dim}")
        self._dim = len(row)
        return row


def _shown_id(given: object) -> str:
    """Return the id by which a report names what may be no candidate."""
    try:
        return str(getattr(given, "id", ""))
    except Exception:  # of an object of the caller's, which may not even have a text
        return ""


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    """A candidate that can be sent."""

    number: int
    """Its place in the ingest."""
    message: candidate_pb2.Candidate
    vector: NDArray[Any] | None
    size: int
    """Bytes on the wire."""
    values: int
    """What it counts for of the values of a request."""

    @property
    def form(self) -> str:
        """Element type of its vector, which is the same all over a batch; empty without one."""
        return "" if self.vector is None else self.vector.dtype.name
