"""What the metrics say of a device that has one pass under way while the next one waits."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
from prometheus_client import REGISTRY

from mmesh.content import Modality
from mmesh.models.protocol import EncoderInfo, FloatMatrix, Prepared
from services.encoder.device import ModelDevice
from services.encoder.preparation import Item

GROUP = "streamed"


class Stream:
    """Stands for a GPU: kernels of a pass run after those of the one before."""

    info = EncoderInfo("s", "s-1", 2, frozenset({Modality.TEXT}), 100, True, passes=2)

    def __init__(self) -> None:
        self._free = threading.Lock()

    def collate(self, batch: Any) -> Any:
        return batch

    def forward(self, collated: Any) -> FloatMatrix:
        with self._free:
            time.sleep(0.02)
        return np.ones((len(collated), 2), np.float32)


def busy_seconds() -> float:
    return REGISTRY.get_sample_value("mmesh_encoder_forward_seconds_sum", {"group": GROUP}) or 0.0


async def test_a_device_is_never_busy_for_longer_than_time_passes() -> None:
    device = ModelDevice(Stream())
    item = Item(Prepared(GROUP, 1, None), 0.0)
    begun, before = time.perf_counter(), busy_seconds()
    await asyncio.gather(*(device.run(device.collate([item])) for _ in range(10)))
    passed, busy = time.perf_counter() - begun, busy_seconds() - before
    device.close()
    assert 10 * 0.02 <= busy <= passed
