"""How large batches should be: measured at the start where the device is a GPU, else as set.

A pass over few tokens takes as long as reading the weights; one over many takes its work. Between
lies the batch from which on more of it gains nothing but waiting. Where that is depends on the
card and the model, so a few passes over texts of ordinary length are timed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmesh.content import Content, Modality, Role
from mmesh.models.probes import picture
from mmesh.models.protocol import EncoderModel, OutOfDeviceMemory, Prepared, encode_together
from mmesh.serving.batching.backlog import BatchShape
from mmesh.serving.batching.batcher import BatchLimits
from services.encoder.config import AUTO, EncoderSettings

logger = logging.getLogger(__name__)

TEXT = Content.of("a report about the harbour and the ships that come and go " * 16)
"""Some 200 tokens."""
ENOUGH = 0.97
"""Share of the best rate at which larger batches are not worth their waiting."""
LEAST_PASS_S, LONGEST_PASS_S = 0.08, 0.25
"""A GPU that is done sooner may wait for the next launch; longer passes gain nothing."""
MOST_COST = 1 << 18
WAITING_S = 10.0
"""Work for so many seconds may wait."""
_REPEATS, _WAKE_S = 3, 0.3


@dataclass(frozen=True, slots=True)
class Timing:
    """A forward pass, and the seconds that it took."""

    cost: int
    seconds: float

    @property
    def rate(self) -> float:
        """Cost a second."""
        return self.cost / self.seconds


async def batch_limits(settings: EncoderSettings, models: Sequence[EncoderModel]) -> BatchLimits:
    """Return the limits that are set, with those that are `auto` measured on the first model."""
    packed = models[0].info.packs
    if settings.serves_on_gpu and AUTO in settings.batch_settings:
        timings = await asyncio.to_thread(lambda: list(timed(models[0])))
        limits = limits_for(timings, packed=packed, devices=len(models))
        shape = limits.shape
        logger.info(
            "tuned",
            extra={
                "max_batch_cost": shape.max_cost,
                "pass_cost": shape.pass_cost,
                "max_waiting_cost": limits.max_waiting_cost,
                "rate": round(max(timing.rate for timing in timings)),
            },
        )
    else:
        shape = BatchShape(packed=packed)
        limits = BatchLimits(shape)
    items, cost, pass_cost, waiting = (
        found if asked == AUTO else int(asked)
        for asked, found in zip(
            settings.batch_settings,
            (shape.max_items, shape.max_cost, shape.pass_cost, limits.max_waiting_cost),
            strict=True,
        )
    )
    return BatchLimits(BatchShape(items, cost, pass_cost, packed), waiting)


def timed(model: EncoderModel) -> Iterator[Timing]:
    """Time ever larger passes until they do not fit, take too long, or get no faster by the cost.

    Each is run several times, and the fastest counts: others may use the machine.
    """
    reads_texts = Modality.TEXT in model.info.modalities
    content = TEXT if reads_texts else Content.of(picture(0))
    prepared = model.prepare(content, Role.CANDIDATE, "")
    _wake(model, [prepared] * 8)
    count = 1
    while count * prepared.cost <= MOST_COST:
        try:
            seconds = min(_seconds(model, [prepared] * count) for _ in range(_REPEATS))
        except OutOfDeviceMemory:
            return
        yield Timing(count * prepared.cost, seconds)
        if seconds > LONGEST_PASS_S:
            return
        count *= 2


def _wake(model: EncoderModel, batch: Sequence[Prepared]) -> None:
    """Keep the device busy for a moment: idle, it has lowered its clocks."""
    until = time.perf_counter() + _WAKE_S
    while time.perf_counter() < until:
        encode_together(model, batch)


def _seconds(model: EncoderModel, batch: Sequence[Prepared]) -> float:
    collated = model.collate(batch)
    begun = time.perf_counter()
    model.forward(collated)
    return time.perf_counter() - begun


def limits_for(timings: Sequence[Timing], *, packed: bool, devices: int) -> BatchLimits:
    """Return the smallest batch that keeps the device busy, as fast as any, and what follows."""
    best = max(timing.rate for timing in timings)
    affordable = [timing for timing in timings if timing.seconds <= LONGEST_PASS_S] or timings[:1]
    fast = [
        timing
        for timing in affordable
        if timing.rate >= ENOUGH * best and timing.seconds >= LEAST_PASS_S
    ] or affordable[-1:]
    chosen = fast[0]
    first = timings[0]
    idle = max(0.0, first.seconds - first.cost / best)
    shape = BatchShape(
        max_items=max(64, chosen.cost // 8),
        max_cost=chosen.cost,
        pass_cost=max(1, round(idle * best)),
        packed=packed,
    )
    return BatchLimits(shape, round(WAITING_S * best * devices))
