"""Passes of each model alone on the device: utilisation, queries, and whether vectors agree."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import ceilings
import models
import numpy as np
from inputs import Inputs
from models import Sized
from section import (
    Found,
    Options,
    alone,
    offline_seconds,
    prepared,
    sorted_batches,
    together,
    tuned,
)

from mmesh.content import Content, Role
from mmesh.models.protocol import FloatMatrix, encode_together
from mmesh.models.torch_runtime import Compiling
from mmesh.serving.batching.backlog import BatchShape

LEAST_MFU = {"qwen3-vl-embedding-2b": 0.45, "qwen3-vl-embedding-8b": 0.5, "mm-embed-7b": 0.5}
HITS = 10


def measure(
    options: Options, found: Found, name: str, dtypes: Sequence[str] = ("bfloat16", "float16")
) -> None:
    """Measure one model in several element types; on a CPU in the first one."""
    peak = 1e12 * ceilings.peak_tflops(options)
    exact = _vectors(options, name, "float32") if _has_exact(options, name) else None
    for dtype in dtypes if options.is_cuda else dtypes[:1]:
        with models.opened(name, small=options.small, device=options.device, dtype=dtype) as sized:
            shape = tuned(sized.model).shape
            found.row(f"{name} {dtype}", max_batch_cost=shape.max_cost, pass_cost=shape.pass_cost)
            _utilisation(
                options, found, sized, shape, peak, f"{name} {dtype}", gated=dtype == "bfloat16"
            )
            _queries(options, found, sized, f"{name} {dtype}")
            rows = _parity(options, found, sized, shape, f"{name} {dtype}")
        if exact is not None:
            found.row(
                f"{name} {dtype} beside float32",
                largest=float(np.abs(rows[: len(exact)] - exact).max()),
                least_cosine=float((rows[: len(exact)] * exact).sum(axis=1).min()),
            )


def measure_compiling(options: Options, found: Found, name: str) -> None:
    """Measure one model as it is and compiled, with the time until it is ready."""
    peak = 1e12 * ceilings.peak_tflops(options)
    compilings: tuple[Compiling, ...] = ("off", "on")
    for compiling in compilings:
        begun = time.perf_counter()
        opened = models.opened(
            name, small=options.small, device=options.device, dtype="bfloat16", compiling=compiling
        )
        with opened as sized:
            what = f"{name}, compile {compiling}"
            shape = tuned(sized.model).shape
            found.row(
                what, ready_after_s=time.perf_counter() - begun, max_batch_cost=shape.max_cost
            )
            _utilisation(options, found, sized, shape, peak, what, gated=False)
            _queries(options, found, sized, what)


def _utilisation(
    options: Options,
    found: Found,
    sized: Sized,
    shape: BatchShape,
    peak: float,
    name: str,
    *,
    gated: bool,
) -> None:
    """Measure rates and the share of the peak (MFU) for texts and pictures."""
    makers = {"texts of 256": Inputs(options.seed, options.scale).alike}
    if not sized.name.startswith("minilm"):
        makers["pictures"] = Inputs(options.seed, options.scale).pictures
    for kind, make in makers.items():
        inputs = prepared(sized.model, make(16 if options.small else 64))
        wanted = max(4 * shape.max_cost // max(one.cost for one in inputs), 8)
        inputs = [
            inputs[n % len(inputs)] for n in range(min(wanted, 40 if options.small else 4096))
        ]
        batches = sorted_batches(inputs, shape)
        seconds = offline_seconds(sized.model, batches)
        rate = sum(map(sized.flops, inputs)) / seconds
        found.row(
            f"{name}, {kind}",
            inputs_per_s=len(inputs) / seconds,
            tokens_per_s=sum(one.cost for one in inputs) / seconds,
            tflops=1e-12 * rate,
            mfu=rate / peak,
        )
        least = LEAST_MFU.get(sized.name)
        if gated and least and kind.startswith("texts"):
            found.gate(f"{sized.name}: MFU of texts >= {least}", rate / peak, rate / peak >= least)


def _queries(options: Options, found: Found, sized: Sized, name: str) -> None:
    """Measure single queries, one after the other, and the same launched kernel by kernel."""
    contents = Inputs(options.seed, 1.0).queries(20 if options.small else 200)
    inputs = prepared(sized.model, contents, Role.QUERY)
    for one in inputs[:20]:
        encode_together(sized.model, [one])
    times = []
    for one in inputs:
        begun = time.perf_counter()
        encode_together(sized.model, [one])
        times.append(time.perf_counter() - begun)
    found.row(
        f"{name}, single queries",
        median_ms=1e3 * float(np.median(times)),
        p99_ms=1e3 * float(np.percentile(times, 99)),
        n=len(times),
    )


def _contents(options: Options) -> list[Content]:
    return Inputs(options.seed + 1, options.scale).lognormal(60 if options.small else 1000, 40)


def _has_exact(options: Options, name: str) -> bool:
    return options.small or name in ("qwen3-vl-embedding-2b", "clip-vit-l-14", "minilm-l6")


def _vectors(options: Options, name: str, dtype: str) -> FloatMatrix:
    with models.opened(
        name, small=options.small, device=options.device, dtype=dtype, compiling="off"
    ) as sized:
        inputs = prepared(sized.model, _contents(options)[:100])
        return together(
            sized.model, inputs, BatchShape(16, 4096, 1, sized.model.info.packs), range(len(inputs))
        )


def _parity(
    options: Options, found: Found, sized: Sized, shape: BatchShape, name: str
) -> FloatMatrix:
    """Compare vectors alone, in batches, and in batches of another order."""
    inputs = prepared(sized.model, _contents(options))
    one_by_one = alone(sized.model, inputs)
    straight = together(sized.model, inputs, shape, range(len(inputs)))
    order = random.Random(0).sample(range(len(inputs)), len(inputs))
    shuffled = together(sized.model, inputs, shape, order)
    # Queries that are near some candidates: what a candidate says, with other words at the end.
    asked = prepared(sized.model, _contents(options)[::10], Role.QUERY)
    queries, queries_together = (
        alone(sized.model, asked),
        together(sized.model, asked, shape, range(len(asked))),
    )
    first = _tops(queries, one_by_one)
    changed = max(
        _changes(first, _tops(queries_together, straight)),
        _changes(first, _tops(queries_together, shuffled)),
    )
    found.row(
        f"{name}, alone and in batches",
        largest=float(np.abs(one_by_one - straight).max()),
        shuffled=float(np.abs(straight - shuffled).max()),
        rows_equal=float((one_by_one == straight).all(axis=1).mean()),
        tops_changed=changed,
        of=len(asked),
    )
    found.gate(f"{name}: no top {HITS} of {len(inputs)} changes in a batch", changed, changed == 0)
    return one_by_one


def _tops(queries: FloatMatrix, candidates: FloatMatrix) -> Sequence[frozenset[int]]:
    scores = queries.astype(np.float64) @ candidates.astype(np.float64).T
    return [frozenset(row.tolist()) for row in np.argsort(-scores, axis=1)[:, :HITS]]


def _changes(one: Sequence[frozenset[int]], other: Sequence[frozenset[int]]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))
