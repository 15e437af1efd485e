"""Inputs made ready for the model on worker threads, and what each is expected to cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from mmesh.content import Content, Modality, Role
from mmesh.errors import DeadlineExceeded, InputTooLong, InvalidField
from mmesh.models.protocol import EncoderModel, FloatMatrix, Prepared
from mmesh.serving.batching.backlog import Priority
from mmesh.serving.batching.coalesce import Ticket
from mmesh.serving.batching.lane import Done
from mmesh.serving.deadline import Deadline
from services.encoder import metrics

CHUNK_CHARACTERS = 4096
"""Characters of text that are tokenised in one go."""
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


@dataclass(frozen=True, slots=True)
class Job:
    """An input that is to be prepared, and who waits for its vector."""

    content: Content
    instruction: str
    ticket: Ticket[Done[Encoded]]
    expected_cost: int


class Preparer:
    """Prepares inputs for a model; queries and bulk work have threads of their own."""

    def __init__(self, model: EncoderModel, threads: int, max_input_cost: int) -> None:
        self._model = model
        self._max_input_cost = max_input_cost
        self._pools = {
            p: ThreadPoolExecutor(threads, f"prepare-{p.name.lower()}") for p in Priority
        }
        self._typical_cost: dict[Modality, float] = {}

    def close(self) -> None:
        """End the threads when they have finished."""
        for pool in self._pools.values():
            pool.shutdown()

    def expected_cost(self, content: Content) -> int:
        """Return what such an input costs, by those that were prepared lately."""
        return round(self._typical_cost.get(content.modality, 1.0))

    def least_cost(self) -> int:
        """Return what the cheapest kind of input costs."""
        return round(min(self._typical_cost.values(), default=0))

    async def prepare(
        self, jobs: Sequence[Job], options: EncodeOptions
    ) -> AsyncIterator[tuple[Job, Item | Exception]]:
        """Yield each job, in order, with its item or with what is wrong with it."""
        chunks = list(_chunks(jobs))
        if len(chunks) == 1 and options.priority is Priority.INTERACTIVE and not _pictures(jobs):
            started = [_done(self._prepare_chunk(jobs, options))]  # sooner than on a thread
        else:
            pool = self._pools[options.priority]
            start = asyncio.get_running_loop().run_in_executor
            started = [start(pool, self._prepare_chunk, chunk, options) for chunk in chunks]
        for chunk, items in zip(chunks, started, strict=True):
            for job, item in zip(chunk, await items, strict=True):
                self._learn(job, item)
                yield job, item

    def _prepare_chunk(self, jobs: Sequence[Job], options: EncodeOptions) -> list[Item | Exception]:
        return [self._prepare_or_error(job, options) for job in jobs]

    def _prepare_or_error(self, job: Job, options: EncodeOptions) -> Item | Exception:
        if not job.ticket.is_wanted(time.monotonic()):
            return DeadlineExceeded("expired before it was prepared")
        start = time.perf_counter()
        try:
            prepared = self._prepare(job, options)
        except Exception as error:
            return error
        prepare_s = time.perf_counter() - start
        metrics.prepare_seconds.labels(prepared.group).observe(prepare_s)
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


def _chunks(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    """Cut jobs into runs of texts of `CHUNK_CHARACTERS` together; a picture ends a run."""
    start = size = 0
    for number, job in enumerate(jobs):
        size += CHUNK_CHARACTERS if job.content.images else len(job.content.text)
        if size >= CHUNK_CHARACTERS:
            yield jobs[start : number + 1]
            start, size = number + 1, 0
    if start < len(jobs):
        yield jobs[start:]


def _pictures(jobs: Sequence[Job]) -> bool:
    return any(job.content.images for job in jobs)


def _done(items: list[Item | Exception]) -> asyncio.Future[list[Item | Exception]]:
    future = asyncio.get_running_loop().create_future()
    future.set_result(items)
    return future
