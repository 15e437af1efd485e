"""The encoder service, whose model takes as long for an input as a large one does on a GPU.

It sleeps, so that many such processes fit on two cores: `python -m tests.mesh.slow_encoder`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from mmesh.models.protocol import EncoderModel, FloatMatrix
from mmesh.models.wrapped import Wrapped
from mmesh.serving.batching.batcher import BatchLimits
from services.encoder import server
from services.encoder.engine import EncoderEngine

INPUT_S = 0.25


class Slow(Wrapped):
    """Answers with the inner model's vectors after `INPUT_S` an input."""

    def forward(self, collated: Any) -> FloatMatrix:
        rows = super().forward(collated)
        time.sleep(INPUT_S * len(rows))
        return rows


class SlowEngine(EncoderEngine):
    """Slow from the first request on; checks before that are as quick as ever."""

    def __init__(self, models: Sequence[EncoderModel], limits: BatchLimits, **options: Any) -> None:
        super().__init__([Slow(model, model.info) for model in models], limits, **options)


if __name__ == "__main__":
    server.EncoderEngine = SlowEngine  # type: ignore[misc]  # the seam at which models come in
    server.main()
