"""The encoder engine: prepare on worker threads, group into batches, run on the device thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np

from mmesh.content import Content, Role
from mmesh.errors import DeadlineExceeded, InvalidField, MmeshError
from mmesh.models.protocol import EncoderInfo, EncoderModel, FloatMatrix, Prepared
from mmesh.serving.batcher import Batcher, BatchLimits, Priority, Work
from mmesh.serving.coalesce import Coalescer
from mmesh.serving.deadline import Deadline
from services.encoder import metrics

SMALL_TEXT = 4096
"""Characters that are tokenised at once; longer texts, and pictures, go to the worker threads."""


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
    coalesced: bool = False


class EncoderEngine:
    """Encodes inputs with one model; an async context manager that owns the batcher."""

    def __init__(self, model: EncoderModel, limits: BatchLimits, prepare_threads: int) -> None:
        self._model = model
        self._batcher: Batcher[Prepared, FloatMatrix] = Batcher(self._forward, limits)
        self._coalescer: Coalescer[Embedding] = Coalescer()
        self._workers = ThreadPoolExecutor(prepare_threads, "prepare")
        self._device = ThreadPoolExecutor(1, "device")

    @property
    def info(self) -> EncoderInfo:
        """The model's own description."""
        return self._model.info

    async def __aenter__(self) -> Self:
        await self._batcher.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._batcher.__aexit__()
        for pool in (self._workers, self._device):
            await asyncio.to_thread(pool.shutdown)

    async def encode(
        self, inputs: Sequence[EncodeInput], role: Role, priority: Priority, deadline: Deadline
    ) -> list[Embedding | MmeshError]:
        """Return, for each input in order, its embedding or the error that it met."""
        work = (self._encode_one(one, role, priority, deadline) for one in inputs)
        return list(await asyncio.gather(*work))

    async def _encode_one(
        self, one: EncodeInput, role: Role, priority: Priority, deadline: Deadline
    ) -> Embedding | MmeshError:
        key = (one.content.digest(), one.instruction, role, priority)
        try:
            embedding, joined = await self._coalescer.run(
                key, lambda: self._compute(one, role, priority, deadline)
            )
        except DeadlineExceeded as error:
            if deadline.remaining() <= 0:
                return error
            return await self._encode_one(one, role, priority, deadline)  # another's time ran out
        except MmeshError as error:
            return error
        if not joined:
            return embedding
        metrics.coalesced_total.inc()
        return Embedding(
            embedding.vector, embedding.truncated, embedding.prepare_s,
            embedding.queue_s, embedding.forward_s, embedding.batch_size, coalesced=True,
        )  # fmt: skip

    async def _compute(
        self, one: EncodeInput, role: Role, priority: Priority, deadline: Deadline
    ) -> Embedding:
        start = time.perf_counter()
        prepared = await self._prepare(one, role)
        prepare_s = time.perf_counter() - start
        metrics.prepare_seconds.labels(prepared.group).observe(prepare_s)
        work = Work(prepared, prepared.group, prepared.cost, priority, deadline.at)
        done = await self._batcher.submit(work)
        metrics.queue_seconds.labels(priority.name.lower()).observe(done.queue_s)
        return Embedding(
            done.result, prepared.truncated, prepare_s, done.queue_s, done.run_s, done.batch_size
        )

    async def _prepare(self, one: EncodeInput, role: Role) -> Prepared:
        modalities = self._model.info.modalities
        if one.content.modality not in modalities:
            known = ", ".join(sorted(modality.value for modality in modalities))
            raise InvalidField(
                "content", f"is {one.content.modality.value}; this model reads {known}"
            )
        arguments = (one.content, role, one.instruction)
        if not one.content.images and sum(map(len, one.content.texts)) <= SMALL_TEXT:
            return self._model.prepare(*arguments)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, self._model.prepare, *arguments)

    async def _forward(self, batch: Sequence[Prepared]) -> Sequence[FloatMatrix]:
        group = batch[0].group
        metrics.waiting_cost.set(self._batcher.waiting_cost)
        metrics.batch_inputs.labels(group).observe(len(batch))
        loop = asyncio.get_running_loop()
        with metrics.forward_seconds.labels(group).time():
            rows = await loop.run_in_executor(self._device, self._model.forward, batch)
        assert rows.shape == (len(batch), self._model.info.dim)
        return list(np.asarray(rows, np.float32))
