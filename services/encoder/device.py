"""A model as a device of the batcher: one thread collates, others run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

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
    def group(self) -> str:
        """What the items have in common."""
        return self.items[0].prepared.group


class ModelDevice:
    """Runs one model, on the device that it was loaded on."""

    def __init__(self, model: EncoderModel) -> None:
        self._model = model
        self.passes = model.info.passes
        self._collator = ThreadPoolExecutor(1, "collate")
        self._runner = ThreadPoolExecutor(self.passes, "device")

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
        metrics.batch_inputs.labels(collated.group).observe(len(costs))
        metrics.batch_cost_total.labels(collated.group).inc(sum(costs))
        metrics.padding_cost_total.labels(collated.group).inc(padded - sum(costs))

    def _forward(self, collated: Collated) -> list[Encoded]:
        inputs = collated.inputs.result()
        try:
            with metrics.forward_seconds.labels(collated.group).time():
                rows = self._model.forward(inputs)
        except OutOfDeviceMemory as error:
            raise TooLarge from error
        assert rows.shape == (len(collated.items), self._model.info.dim)
        return [
            Encoded(row, item.prepared.truncated, item.prepare_s)
            for row, item in zip(rows, collated.items, strict=True)
        ]
