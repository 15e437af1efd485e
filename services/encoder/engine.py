"""The encoder engine: prepare on worker threads, group into batches, run on the device threads."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Self

from mmesh.content import Content
from mmesh.errors import InvalidField
from mmesh.models.protocol import EncoderInfo, EncoderModel, FloatMatrix
from mmesh.serving.batching.backlog import Work
from mmesh.serving.batching.batcher import Batcher, BatchLimits
from mmesh.serving.batching.coalesce import Coalescer, Ticket
from mmesh.serving.batching.lane import Done
from services.encoder import metrics
from services.encoder.device import ModelDevice
from services.encoder.preparation import Encoded, EncodeOptions, Item, Job, Preparer

Outcome = Done[Encoded]


@dataclass(frozen=True, slots=True)
class EncodeInput:
    """One thing to encode."""

    content: Content
    instruction: str


@dataclass(frozen=True, slots=True)
class Embedding:
    """A unit vector (dim,), and how it came about."""

    vector: FloatMatrix
    truncated: bool
    prepare_s: float
    queue_s: float
    forward_s: float
    batch_size: int
    coalesced: bool
    """Another call had started the work."""


class EncoderEngine:
    """Encodes inputs with copies of one model, one a device; an async context manager."""

    def __init__(
        self,
        models: Sequence[EncoderModel],
        limits: BatchLimits,
        prepare_threads: int = 2,
        max_input_cost: int = 8192,
    ) -> None:
        self._info = models[0].info
        self._preparer = Preparer(models[0], prepare_threads, max_input_cost)
        self._devices = [ModelDevice(model) for model in models]
        self._batcher: Batcher[Item, Encoded] = Batcher(self._devices, limits)
        self._coalescer: Coalescer[Outcome] = Coalescer()
        self._feeding: set[asyncio.Task[None]] = set()

    @property
    def info(self) -> EncoderInfo:
        """The model's own description."""
        return self._info

    async def __aenter__(self) -> Self:
        metrics.waiting_cost.set_function(lambda: self._batcher.waiting_cost)
        await self._batcher.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*self._feeding)
        await self._batcher.__aexit__()
        await asyncio.to_thread(self._preparer.close)
        for device in self._devices:
            await asyncio.to_thread(device.close)

    def check_room(self, count: int, options: EncodeOptions) -> None:
        """Refuse so many inputs before they are looked at, if even cheap ones would find no room.

        Raises:
            Overloaded: too much waits, or this would come too late.
        """
        cost = count * self._preparer.least_cost()
        self._batcher.check_room(cost, options.priority, options.deadline.at)

    async def encode(
        self, inputs: Sequence[EncodeInput], options: EncodeOptions
    ) -> list[Embedding | InvalidField]:
        """Return, for each input in order, its embedding, or what is wrong with it if skipped.

        Raises:
            InvalidField: an input cannot be encoded, named by a path that starts with `inputs[i]`.
            Overloaded: too much waits, or this would come too late.
            DeadlineExceeded: the time was up before all inputs were encoded.
        """
        keys = [_key(one, options) for one in inputs]
        joined = [self._coalescer.join(key, options.deadline.at) for key in keys]
        try:
            new = [(one, t) for one, (t, is_new) in zip(inputs, joined, strict=True) if is_new]
            if new:
                self._start(new, options)
            metrics.coalesced_total.inc(len(inputs) - len(new))
            await _all_done([ticket.outcome for ticket, _ in joined], options)
            return [_embedding(t, options, coalesced=not is_new) for t, is_new in joined]
        finally:
            for key, (ticket, _) in zip(keys, joined, strict=True):
                self._coalescer.leave(key, ticket)

    def _start(
        self, new: Sequence[tuple[EncodeInput, Ticket[Outcome]]], options: EncodeOptions
    ) -> None:
        """Begin to work on inputs; it goes on when this call ends, for others who have joined."""
        expected = self._preparer.expected_cost
        jobs = [Job(one.content, one.instruction, t, expected(one.content)) for one, t in new]
        cost = sum(job.expected_cost for job in jobs)
        self._batcher.reserve(cost, options.priority, options.deadline.at)
        task = asyncio.create_task(self._feed(jobs, options))
        self._feeding.add(task)
        task.add_done_callback(self._feeding.discard)

    async def _feed(self, jobs: Sequence[Job], options: EncodeOptions) -> None:
        """Prepare inputs and hand them to the batcher."""
        async for job, item in self._preparer.prepare(jobs, options):
            self._batcher.release(job.expected_cost, options.priority)
            if isinstance(item, Exception):
                job.ticket.fail(item)
            else:
                self._batcher.put(_work(item, job.ticket, options))


def _key(one: EncodeInput, options: EncodeOptions) -> Hashable:
    how = (options.role, options.priority, options.refuse_long_text)
    return one.content.digest(), one.instruction, how


def _work(item: Item, ticket: Ticket[Outcome], options: EncodeOptions) -> Work[Item]:
    cost = max(1, item.prepared.cost)
    return Work(item, item.prepared.group, cost, ticket, options.priority)


async def _all_done(outcomes: Sequence[asyncio.Future[Outcome]], options: EncodeOptions) -> None:
    """Wait for all outcomes, or for the first error that fails the call, and raise that."""
    pending = set(outcomes)
    while pending:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
        for number, outcome in enumerate(outcomes):
            error = outcome.exception() if outcome.done() else None
            if isinstance(error, InvalidField) and not options.skip_problems:
                raise error.under(f"inputs[{number}]")
            if error is not None and not isinstance(error, InvalidField):
                raise error


def _embedding(
    ticket: Ticket[Outcome], options: EncodeOptions, *, coalesced: bool
) -> Embedding | InvalidField:
    error = ticket.outcome.exception()
    if isinstance(error, InvalidField):
        return error
    done = ticket.outcome.result()
    if not coalesced:
        metrics.queue_seconds.labels(options.priority.name.lower()).observe(done.queue_s)
    one = done.result
    times = (one.prepare_s, done.queue_s, done.run_s)
    return Embedding(one.vector, one.truncated, *times, done.batch_size, coalesced)
