"""Inputs made ready for the model on worker threads, and what each is expected to cost."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from mmesh.content import Content, Modality, Role
from mmesh.errors import DeadlineExceeded, InputTooLong, InvalidField, Overloaded
from mmesh.models import images
from mmesh.models.containment import contained
from mmesh.models.pictures.pool import DecoderPool
from mmesh.models.protocol import EncoderModel, FloatMatrix, Prepared
from mmesh.serving.batching.backlog import Priority
from mmesh.serving.batching.coalesce import Ticket
from mmesh.serving.batching.lane import Done
from mmesh.serving.deadline import Deadline
from services.encoder import metrics

CHUNK_CHARACTERS = 4096
"""Characters of text that are tokenised in one go; queries of fewer are, on the event loop."""
MOST_TEXT_THREADS = 2
"""Threads of one priority that prepare texts: most of that is Python, so more of them only keep
each other, and who launches passes on a GPU, waiting for the interpreter (the GIL)."""
MOST_LARGE = 64
"""Inputs with large pictures of one priority that wait or run, from which calls with more of them
are refused."""
_KEPT = 0.95
"""Weight of the inputs before beside the last one in what an input is expected to cost."""


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """What the inputs of one call share."""

    role: Role
    priority: Priority
    deadline: Deadline
    refuse_long_text: bool = False
    """Refuse text that is longer than the model reads; else it is cut."""
    skip_problems: bool = False
    """Leave out inputs that cannot be encoded; else they fail the call."""


@dataclass(frozen=True, slots=True)
class Item:
    """A prepared input."""

    prepared: Prepared = field(repr=False)
    prepare_s: float


@dataclass(frozen=True, slots=True)
class Encoded:
    """The unit vector (dim,) of an item; its pixels and tokens are not kept."""

    vector: FloatMatrix
    truncated: bool
    prepare_s: float
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """An input that is to be prepared, and who waits for its vector."""

    content: Content
    instruction: str
    ticket: Ticket[Done[Encoded]]
    expected_cost: int
    is_large: bool = False
    """Whether its pictures are dear to decode; see `is_large`."""


class Room(Protocol):
    """Where prepared inputs wait, of which there should not be too many."""

    def has_room(self, priority: Priority) -> bool:
        """Tell whether more may come."""

    async def room(self, priority: Priority) -> None:
        """Wait until more may come."""


@dataclass(frozen=True, slots=True)
class _Started:
    """A chunk that is being prepared."""

    jobs: Sequence[Job]
    items: asyncio.Future[list[Item | Exception]]


class Preparer:
    """Prepares inputs for a model; queries and bulk work have threads of their own.

    So have texts beside pictures, and inputs with large pictures, the dearest of which are decoded
    in another process.
    """

    def __init__(self, model: EncoderModel, threads: int, max_input_cost: int) -> None:
        self._model = model
        self._max_input_cost = max_input_cost
        self._most_ahead = 4 * threads + 2
        self._text_pools = _pools(min(threads, MOST_TEXT_THREADS), "texts")
        self._picture_pools = _pools(threads, "pictures")
        self._large_pools = _pools(threads, "large")
        self._decoders = DecoderPool()  # of one process: some pictures take a gigabyte
        self._large = dict.fromkeys(Priority, 0)
        self._typical_cost: dict[Modality, float] = {}

    def close(self) -> None:
        """End the threads when they have finished, and what is decoded elsewhere at once."""
        self._decoders.close()
        for pools in (self._text_pools, self._picture_pools, self._large_pools):
            for pool in pools.values():
                pool.shutdown()

    def check_large(self, jobs: Sequence[Job], priority: Priority) -> None:
        """Raise `Overloaded` if some have large pictures and enough such wait already."""
        if any(job.is_large for job in jobs) and self._large[priority] >= MOST_LARGE:
            raise Overloaded(f"{self._large[priority]} inputs with large pictures wait already")

    def add_large(self, jobs: Sequence[Job], priority: Priority) -> None:
        """Count those with large pictures, until `drop_large` of each."""
        self._large[priority] += sum(job.is_large for job in jobs)

    def drop_large(self, job: Job, priority: Priority) -> None:
        """Count an input no more, which is prepared or never will be."""
        self._large[priority] -= job.is_large

    def expected_cost(self, content: Content) -> int:
        """Return what such an input costs, by those that were prepared lately."""
        return round(self._typical_cost.get(content.modality, 1.0))

    def least_cost(self) -> int:
        """Return what the cheapest kind of input costs."""
        return round(min(self._typical_cost.values(), default=0))

    async def prepare(
        self, jobs: Sequence[Job], options: EncodeOptions, room: Room
    ) -> AsyncIterator[tuple[Job, Item | Exception]]:
        """Yield each job, in order, with its item or with what is wrong with it.

        Only a few chunks are prepared ahead of what is yielded, and none while there is no room.
        """
        if options.priority is Priority.INTERACTIVE and sum(map(_size, jobs)) < CHUNK_CHARACTERS:
            for job, item in zip(jobs, self._prepare_chunk(jobs, options), strict=True):
                self._learn(job, item)
                yield job, item  # sooner than on a thread
            return
        chunks, started = deque(_chunks(jobs)), deque[_Started]()
        while chunks or started:
            while chunks and len(started) < self._most_ahead and room.has_room(options.priority):
                chunk = chunks.popleft()
                started.append(_Started(chunk, self._start(chunk, options)))
            if not started:
                await room.room(options.priority)
                continue
            oldest = started.popleft()
            for job, item in zip(oldest.jobs, await oldest.items, strict=True):
                self._learn(job, item)
                yield job, item

    def _start(
        self, chunk: Sequence[Job], options: EncodeOptions
    ) -> asyncio.Future[list[Item | Exception]]:
        """Prepare a chunk on a thread; one with large pictures on those for such."""
        start, priority = asyncio.get_running_loop().run_in_executor, options.priority
        if any(job.is_large for job in chunk):
            return start(self._large_pools[priority], self._prepare_apart, chunk, options)
        pools = self._picture_pools if _pictures(chunk) else self._text_pools
        return start(pools[priority], self._prepare_chunk, chunk, options)

    def _prepare_apart(self, jobs: Sequence[Job], options: EncodeOptions) -> list[Item | Exception]:
        """Prepare a chunk with large pictures; ends early when nobody waits for it any more."""
        tickets = [job.ticket for job in jobs]

        def wanted() -> bool:
            return any(ticket.is_wanted(time.monotonic()) for ticket in tickets)

        with images.decoding_apart(self._decoders, wanted):
            return self._prepare_chunk(jobs, options)

    def _prepare_chunk(self, jobs: Sequence[Job], options: EncodeOptions) -> list[Item | Exception]:
        return [self._prepare_or_error(job, options) for job in jobs]

    def _prepare_or_error(self, job: Job, options: EncodeOptions) -> Item | Exception:
        if not job.ticket.is_wanted(time.monotonic()):
            return DeadlineExceeded("expired before it was prepared")
        start = time.perf_counter()
        try:
            with contained():
                prepared = self._prepare(job, options)
        except Exception as error:
            return error
        prepare_s = time.perf_counter() - start
        metrics.prepare_seconds.labels(prepared.label).observe(prepare_s)
        return Item(prepared, prepare_s)

    def _prepare(self, job: Job, options: EncodeOptions) -> Prepared:
        read = self._model.info.modalities
        if job.content.modality not in read:
            known = ", ".join(sorted(modality.value for modality in read))
            problem = f"is {job.content.modality.value}; this model reads {known}"
            raise InvalidField("content", problem)
        prepared = self._model.prepare(job.content, options.role, job.instruction)
        if prepared.truncated and options.refuse_long_text:
            most = self._model.info.max_text_tokens
            raise InputTooLong("content", f"has more text than the {most} tokens that are read")
        if prepared.cost > self._max_input_cost:
            problem = f"costs {prepared.cost} tokens; at most {self._max_input_cost} are allowed"
            raise InputTooLong("content", problem)
        return prepared

    def _learn(self, job: Job, item: Item | Exception) -> None:
        if isinstance(item, Item):
            modality, cost = job.content.modality, item.prepared.cost
            before = self._typical_cost.get(modality, cost)
            self._typical_cost[modality] = _KEPT * before + (1 - _KEPT) * cost


def _pools(threads: int, what: str) -> dict[Priority, ThreadPoolExecutor]:
    return {p: ThreadPoolExecutor(threads, f"prepare-{what}-{p.name.lower()}") for p in Priority}


def is_large(content: Content) -> bool:
    """Tell whether the pictures are dear to decode, by their headers."""
    return images.work_of_content(content) > images.LARGE_WORK


def _chunks(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    """Cut jobs into runs of texts of `CHUNK_CHARACTERS` together, and inputs with pictures."""
    start = size = 0
    for number, job in enumerate(jobs):
        if job.content.images and start < number:
            yield jobs[start:number]
            start = number
        size += _size(job)
        if size >= CHUNK_CHARACTERS:
            yield jobs[start : number + 1]
            start, size = number + 1, 0
    if start < len(jobs):
        yield jobs[start:]


def _size(job: Job) -> int:
    """Return the characters of an input; a picture counts as a chunk of them."""
    return CHUNK_CHARACTERS if job.content.images else len(job.content.text) + len(job.instruction)


def _pictures(jobs: Sequence[Job]) -> bool:
    return any(job.content.images for job in jobs)
