"""A model as a device of the batcher: one thread collates, others run."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mmesh.models.containment import contained
from mmesh.models.protocol import EncoderModel, OutOfDeviceMemory
from mmesh.serving.batching.lane import TooLarge
from services.encoder import metrics
from services.encoder.preparation import Encoded, Item


@dataclass(frozen=True, slots=True)
class Collated:
    """Items of one group that are padded and stacked on a thread."""

    items: Sequence[Item]
    inputs: Future[Any]

    @property
    def label(self) -> str:
        """What the items have in common, in one word."""
        return self.items[0].prepared.label


class ModelDevice:
    """Runs one model, on the device that it was loaded on."""

    def __init__(self, model: EncoderModel) -> None:
        self._model = model
        self.passes = model.info.passes
        self._collator = ThreadPoolExecutor(1, "collate")
        self._runner = ThreadPoolExecutor(self.passes, "device")
        self._ending, self._free_since = threading.Lock(), 0.0

    def close(self) -> None:
        """End the threads when they have finished."""
        self._collator.shutdown()
        self._runner.shutdown()

    def collate(self, items: Sequence[Item]) -> Collated:
        """Begin to pad and stack inputs of one group."""
        batch = [item.prepared for item in items]
        return Collated(items, self._collator.submit(self._model.collate, batch))

    def run(self, collated: Collated) -> Awaitable[Sequence[Encoded]]:
        """Begin a forward pass; await what came of each item."""
        self._count(collated)
        return asyncio.get_running_loop().run_in_executor(self._runner, self._forward, collated)

    def _count(self, collated: Collated) -> None:
        costs = [item.prepared.cost for item in collated.items]
        padded = sum(costs) if self._model.info.packs else max(costs) * len(costs)
        metrics.batch_inputs.labels(collated.label).observe(len(costs))
        metrics.batch_cost_total.labels(collated.label).inc(sum(costs))
        metrics.padding_cost_total.labels(collated.label).inc(padded - sum(costs))

    @contained()
    def _forward(self, collated: Collated) -> list[Encoded]:
        inputs, begun = collated.inputs.result(), time.perf_counter()
        try:
            rows = self._model.forward(inputs)
        except OutOfDeviceMemory as error:
            raise TooLarge from error
        finally:
            self._observe(collated.label, begun)
        assert rows.shape == (len(collated.items), self._model.info.dim)
        return [
            Encoded(row, item.prepared.truncated, item.prepare_s, item.prepared.notices)
            for row, item in zip(rows, collated.items, strict=True)
        ]

    def _observe(self, label: str, begun: float) -> None:
        """Note how long a pass had the device: not while it waited there for the one before."""
        with self._ending:
            now = time.perf_counter()
            before, self._free_since = self._free_since, now
        metrics.forward_seconds.labels(label).observe(now - max(begun, before))
