"""Memory of passes by their cost, and batches that do not fit."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Sequence

import models
import numpy as np
import torch
from client import Clients
from inputs import Inputs
from section import Found, Options, alone, prepared
from serving import packed, served

from mmesh.models.protocol import EncoderModel, OutOfDeviceMemory, Prepared, encode_together
from mmesh.serving.batching.backlog import BatchShape
from mmesh.serving.batching.batcher import BatchLimits

GB = 1e9
MOST_TOKENS = 1 << 19


def measure(options: Options, found: Found, name: str) -> None:
    """Measure peaks, the largest batch that fits, and what comes of one that does not."""
    with models.opened(name, small=options.small, device=options.device, dtype="bfloat16") as sized:
        inputs = prepared(sized.model, Inputs(options.seed, options.scale).alike(64))
        if not options.is_cuda:
            found.row(f"{name}, memory", note="no GPU")
            return
        fits = _peaks(found, sized.model, inputs, name)
        found.row(f"{name}, largest batch", suggested_max_cost=fits // 2, fits=fits)
        _survival(options, found, sized.model, inputs, name)


def _peaks(found: Found, model: EncoderModel, inputs: Sequence[Prepared], name: str) -> int:
    """Return the cost of the largest batch that fits, among those that double."""
    fits = 0
    count = 16
    while count * inputs[0].cost <= MOST_TOKENS:
        batch = [inputs[n % len(inputs)] for n in range(count)]
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        try:
            encode_together(model, batch)
        except OutOfDeviceMemory:
            break
        fits = sum(one.cost for one in batch)
        peak = torch.cuda.max_memory_allocated() - held
        found.row(f"{name}, batch of {fits} tokens", gb=peak / GB, kb_a_token=peak / fits / 1e3)
        count *= 4
    return fits


def _survival(
    options: Options, found: Found, model: EncoderModel, inputs: Sequence[Prepared], name: str
) -> None:
    """Fill the memory, send batches that cannot fit, and see what is answered and how."""
    before = alone(model, inputs[:4])
    gc.collect()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(max(0, free - int(1.5 * GB)), dtype=torch.uint8, device=options.device)
    limits = BatchLimits(BatchShape(4096, MOST_TOKENS, 1, model.info.packs), 1 << 22)
    requests = [packed(Inputs(number).alike(256), bulk=True) for number in range(4)]
    with served(model, limits, options) as address, Clients(address) as clients:
        try:
            clients.bulk(requests, 4, 4.0).calls_per_s()
            outcome = "answered"
        except RuntimeError as error:
            refused = "RESOURCE_EXHAUSTED" in str(error) and "memory is full" in str(error)
            outcome = "QUEUE_FULL" if refused else str(error)[:200]
        ended: list[float] = []
        with contextlib.suppress(RuntimeError):
            query = packed(Inputs(9).queries(1), bulk=False)
            ended = clients.paced([query] * 5, 20.0)
    del ballast
    torch.cuda.empty_cache()
    after = alone(model, inputs[:4])
    same = bool(np.array_equal(before, after))
    found.row(f"{name}, memory filled", bulk=outcome, queries_answered=len(ended), same_after=same)
    survived = len(ended) == 5 and same and outcome in ("answered", "QUEUE_FULL")
    found.gate(f"{name}: out of memory is survived", float(survived), survived)
