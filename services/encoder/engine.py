"""The encoder engine: prepare on worker threads, group into batches, run on the device threads."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Self

from mmesh.content import Content
from mmesh.errors import InternalError, InvalidField
from mmesh.models.protocol import EncoderInfo, EncoderModel
from mmesh.serving.batching.backlog import Work
from mmesh.serving.batching.batcher import Batcher, BatchLimits
from mmesh.serving.batching.coalesce import Coalescer, Ticket
from mmesh.serving.batching.lane import Done
from services.encoder import metrics
from services.encoder.device import ModelDevice
from services.encoder.preparation import Encoded, EncodeOptions, Item, Job, Preparer, is_large

logger = logging.getLogger(__name__)

Outcome = Done[Encoded]


Input = tuple[Content, str]
"""One thing to encode, and its instruction."""


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
        self._reserved: set[Ticket[Outcome]] = set()

    @property
    def info(self) -> EncoderInfo:
        """The model's own description."""
        return self._info

    def is_healthy(self) -> bool:
        """Tell whether the devices work; one whose passes all fail never works again."""
        return not self._batcher.is_failing

    async def __aenter__(self) -> Self:
        metrics.waiting_cost.set_function(lambda: self._batcher.waiting_cost)
        await self._batcher.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*self._feeding, return_exceptions=True)
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
        self, inputs: Sequence[Input], options: EncodeOptions
    ) -> tuple[list[Outcome | InvalidField], int]:
        """Return, for each input in order, its vector, or what is wrong with it if skipped.

        And how many were coalesced: another call had started the work.

        Raises:
            InvalidField: an input cannot be encoded, named by a path that starts with `inputs[i]`.
            Overloaded: too much waits, or this would come too late.
            DeadlineExceeded: the time was up before all inputs were encoded.
        """
        how = (options.role, options.priority, options.refuse_long_text)
        keys = [(content.digest(), instruction, how) for content, instruction in inputs]
        joined = [self._coalescer.join(key, options.deadline.at) for key in keys]
        try:
            new = [(one, t) for one, (t, is_new) in zip(inputs, joined, strict=True) if is_new]
            if new:
                self._start(new, options)
            metrics.coalesced_total.inc(len(inputs) - len(new))
            await _all_done([ticket.outcome for ticket, _ in joined], options)
            found = [(_outcome(ticket, options, is_new), is_new) for ticket, is_new in joined]
            coalesced = sum(isinstance(one, Done) and not is_new for one, is_new in found)
            return [one for one, _ in found], coalesced
        finally:
            for key, (ticket, _) in zip(keys, joined, strict=True):
                self._coalescer.leave(key, ticket)

    def _start(self, new: Sequence[tuple[Input, Ticket[Outcome]]], options: EncodeOptions) -> None:
        """Begin to work on inputs; it goes on when this call ends, for others who have joined."""
        expected = self._preparer.expected_cost
        jobs = [
            Job(content, instruction, ticket, expected(content), is_large(content))
            for (content, instruction), ticket in new
        ]
        self._preparer.check_large(jobs, options.priority)
        cost = sum(job.expected_cost for job in jobs)
        self._batcher.reserve(cost, options.priority, options.deadline.at)
        self._preparer.add_large(jobs, options.priority)
        for job in jobs:
            self._reserved.add(job.ticket)
            job.ticket.outcome.add_done_callback(partial(self._release, job, options))
        task = asyncio.create_task(self._feed(jobs, options))
        self._feeding.add(task)
        task.add_done_callback(self._end_feeding)

    async def _feed(self, jobs: Sequence[Job], options: EncodeOptions) -> None:
        """Prepare inputs and hand them to the batcher."""
        left = deque(jobs)
        try:
            async for job, item in self._preparer.prepare(jobs, options, self._batcher):
                if isinstance(item, Exception):
                    job.ticket.fail(item)
                else:
                    prepared = item.prepared
                    cost = max(1, prepared.cost)
                    self._batcher.put(
                        Work(item, prepared.group, cost, job.ticket, options.priority)
                    )
                self._release(job, options)
                self._preparer.drop_large(left.popleft(), options.priority)
        finally:  # however it ends, no room is lost and nobody is left waiting
            for job in left:
                self._preparer.drop_large(job, options.priority)
                job.ticket.fail(InternalError("the input could not be prepared"))

    def _release(self, job: Job, options: EncodeOptions, _: object = None) -> None:
        """Give back the room of an input that has been handed on, or that nobody waits for."""
        if job.ticket in self._reserved:
            self._reserved.remove(job.ticket)
            self._batcher.release(job.expected_cost, options.priority)

    def _end_feeding(self, task: asyncio.Task[None]) -> None:
        self._feeding.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("inputs could not be prepared", exc_info=error)


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


def _outcome(
    ticket: Ticket[Outcome], options: EncodeOptions, is_new: bool
) -> Outcome | InvalidField:
    error = ticket.outcome.exception()
    if isinstance(error, InvalidField):
        return error
    done = ticket.outcome.result()
    if is_new:
        metrics.queue_seconds.labels(options.priority.name.lower()).observe(done.queue_s)
    return done
