"""The encoder service on an emulated GPU: what its scheduling leaves idle, on any machine.

A GPU works through a queue of kernels (its stream), which Python fills launch by launch beside
threads that prepare inputs and an event loop. Here the kernels take no time of the processor, but
launches are as many as a real pass has, and each gives the interpreter up for a moment: so gaps of
the stream, and queries that wait for work that was launched before, show as they do on a card.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import models
import numpy as np
import serving
from client import Clients
from section import Found, Options

from mmesh.content import Content, Role
from mmesh.models import cuda_graphs
from mmesh.models.protocol import EncoderInfo, EncoderModel, FloatMatrix, Prepared
from mmesh.serving.batching.backlog import BatchShape
from mmesh.serving.batching.batcher import BatchLimits
from services.encoder import preparation

RATE, LEAST_PASS_S = 190_000.0, 0.002
"""Tokens a second, and seconds of the shortest pass: what Qwen3-VL-Embedding-2B has on an H200."""
LAUNCHES, LAUNCHES_OF_RECORDING = 500, 20
"""Of a pass of that model, and of one that is replayed from a CUDA graph."""
MAX_COST, PASS_COST, WAITING_COST = 20_448, 400, 1_900_000
AS_IT_IS = "as it is"
WAYS = {
    "one pool, recorded to 512": (8, range(64, 513, 64)),
    AS_IT_IS: (preparation.MOST_TEXT_THREADS, cuda_graphs.WIDTHS),
}
"""Threads that prepare texts, and tokens of recordings: before, and now."""
THREADS = 8
"""That prepare inputs of one priority: half of 16 cores."""


@dataclass
class Stream:
    """The emulated queue of kernels."""

    free_at: float = 0.0
    idle: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def launch(self, seconds: float) -> None:
        """Queue a kernel that takes so long."""
        time.sleep(0)  # gives up the interpreter, as operators of torch do
        now = time.perf_counter()
        if self.free_at < now:
            self.idle.append(now - self.free_at)
            self.free_at = now
        self.free_at += seconds

    def busy(self, seconds: float) -> dict[str, float]:
        """Return the share of the next seconds in which a kernel ran."""
        before, begun = len(self.idle), time.perf_counter()
        time.sleep(seconds)
        gaps = self.idle[before:]
        spent = time.perf_counter() - begun
        longest = 1e3 * max(gaps, default=0.0)
        return {"busy": max(0.0, 1 - sum(gaps) / spent), "longest_gap_ms": longest}


class EmulatedModel:
    """Implements `EncoderModel`: prepares and collates like the model it is made of."""

    def __init__(self, model: EncoderModel, stream: Stream) -> None:
        self._model = model
        self._stream = stream
        self.info: EncoderInfo = replace(model.info, packs=True, passes=2)

    def prepare(self, content: Content, role: Role, instruction: str) -> Prepared:
        """Prepare as the model does; thread-safe."""
        return self._model.prepare(content, role, instruction)

    def collate(self, batch: Sequence[Prepared]) -> tuple[int, int, Any, bool]:
        """Return inputs, cost and tensors, and whether a recording would be replayed."""
        lengths = [len(one.payload.ids) for one in batch]
        has_pictures = any(one.payload.grids for one in batch)
        recorded = not has_pictures and cuda_graphs.Slots.around(lengths) is not None
        cost = sum(one.cost for one in batch)
        return len(batch), cost, self._model.collate(batch), recorded

    def forward(self, collated: tuple[int, int, Any, bool]) -> FloatMatrix:
        """Launch a pass, wait for its end, and return rows (n, dim) that say nothing."""
        count, cost, _, recorded = collated
        launches = LAUNCHES_OF_RECORDING if recorded else LAUNCHES
        with self._stream.lock:
            for _ in range(launches):
                self._stream.launch(max(cost / RATE, LEAST_PASS_S) / launches)
            done_at = self._stream.free_at
        time.sleep(max(0.0, done_at - time.perf_counter()))
        rows: FloatMatrix = np.zeros((count, self.info.dim), np.float32)
        rows[:, 0] = 1.0
        return rows


def measure(options: Options, found: Found) -> None:
    """Measure texts of all lengths and queries beside bulk work, as it was before and is now.

    Queries have no gate: beside clients and tokenisers on few cores they wait for a core, too.
    """
    limits = BatchLimits(BatchShape(MAX_COST // 8, MAX_COST, PASS_COST, packed=True), WAITING_COST)
    on_cpu = replace(options, device="cpu")
    opened = models.opened("qwen3-vl-embedding-2b", small=True, device="cpu", dtype="float32")
    with opened as sized:
        for way in WAYS if not options.small else [AS_IT_IS]:
            stream = Stream()
            model = EmulatedModel(sized.model, stream)
            with ExitStack() as stack:
                stack.enter_context(_in_this(way))
                address = stack.enter_context(serving.served(model, limits, on_cpu, THREADS))
                bulk, queries = (stack.enter_context(Clients(address)) for _ in range(2))
                name, gated = f"emulated, {way}", way == AS_IT_IS and not options.small
                for kind in ("texts", "texts of lognormal length"):
                    serving.beside_offline(
                        on_cpu, found, model, limits, bulk, name, kind, gated, stream.busy
                    )
                serving.beside_bulk(on_cpu, found, bulk, queries, name, gated=False)


@contextmanager
def _in_this(way: str) -> Iterator[None]:
    before = preparation.MOST_TEXT_THREADS, cuda_graphs.WIDTHS
    try:
        preparation.MOST_TEXT_THREADS, widths = WAYS[way]
        cuda_graphs.WIDTHS = tuple(widths)
        yield
    finally:
        preparation.MOST_TEXT_THREADS, cuda_graphs.WIDTHS = before
