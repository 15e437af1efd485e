"""The encoder service beside a loop of ideal batches, and queries beside bulk work.

The real engine, servicer and gRPC server run here, clients in processes of their own.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import models
import numpy as np
import torch
import uvloop
from client import Clients
from inputs import Inputs
from section import Found, Options, offline_seconds, prepared, sorted_batches, tuned

from mmesh import Content, wire
from mmesh.api.encoder.v1 import encoder_pb2
from mmesh.api.encoder.v1.encoder_pb2_grpc import add_EncoderServiceServicer_to_server
from mmesh.content import Role
from mmesh.models.protocol import EncoderModel
from mmesh.serving.batching.batcher import BatchLimits
from mmesh.serving.host import Host, freeze_what_is_here
from services.encoder import metrics
from services.encoder.config import EncoderSettings
from services.encoder.engine import EncoderEngine
from services.encoder.servicer import EncoderServicer

CALL = {"texts": 64, "texts of lognormal length": 64, "pictures": 16, "mixed": 64}
"""Inputs of a bulk call."""
CLIENTS = 16
QUERIES_PER_S = 20.0
ONE_BATCH_S = 30.0
LEAST_SHARE, LEAST_BUSY, MOST_SLOWER = 0.95, 0.95, 3.0


def measure(options: Options, found: Found, name: str, *, gated: bool) -> None:
    """Measure one model with each kind of input, then queries."""
    with models.opened(name, small=options.small, device=options.device, dtype="bfloat16") as sized:
        limits = tuned(sized.model)
        kinds = ["texts", "texts of lognormal length"]
        if not name.startswith("minilm"):
            kinds += ["pictures", "mixed"]
        busy = partial(device_busy, options)
        with ExitStack() as stack:
            address = stack.enter_context(served(sized.model, limits, options))
            bulk, queries = (stack.enter_context(Clients(address)) for _ in range(2))
            for kind in kinds:
                beside_offline(options, found, sized.model, limits, bulk, name, kind, gated, busy)
            beside_bulk(options, found, bulk, queries, name, gated)


@contextmanager
def served(
    model: EncoderModel, limits: BatchLimits, options: Options, threads: int | None = None
) -> Iterator[str]:
    """Run the service on a thread; yield its address."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def on_loop(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    try:
        service = on_loop(_started(model, limits, options, threads))
        yield service.address
        on_loop(service.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)


@dataclass(frozen=True, slots=True)
class _Service:
    engine: EncoderEngine
    host: Host

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.host.port}"

    async def stop(self) -> None:
        await self.host.server.stop(5)
        await self.engine.__aexit__()


async def _started(
    model: EncoderModel, limits: BatchLimits, options: Options, threads: int | None
) -> _Service:
    settings = EncoderSettings(device=options.device)
    engine = EncoderEngine([model], limits, threads or settings.prepare_thread_count)
    service = _Service(await engine.__aenter__(), Host("encoder", settings))
    service.host.add(
        add_EncoderServiceServicer_to_server,
        EncoderServicer(engine),
        "mmesh.api.encoder.v1.EncoderService",
    )
    await service.host.start()
    freeze_what_is_here()
    return service


def packed(contents: Sequence[Content], *, bulk: bool) -> bytes:
    """Return the bytes of a request, as the gateway would send it."""
    return encoder_pb2.EncodeRequest(
        inputs=[encoder_pb2.Input(content=wire.content_to_pb(content)) for content in contents],
        role=encoder_pb2.ROLE_CANDIDATE if bulk else encoder_pb2.ROLE_QUERY,
        priority=encoder_pb2.PRIORITY_BULK if bulk else encoder_pb2.PRIORITY_INTERACTIVE,
    ).SerializeToString()


def _contents(options: Options, kind: str, seed: int) -> list[Content]:
    make = Inputs(seed, options.scale)
    count = 64 if options.small else {"pictures": 512}.get(kind, 3072)
    makers = {
        "texts": make.alike,
        "texts of lognormal length": make.lognormal,
        "pictures": make.pictures,
        "mixed": lambda n: make.mixed(n // 2),
    }
    return makers[kind](count)


def beside_offline(
    options: Options,
    found: Found,
    model: EncoderModel,
    limits: BatchLimits,
    clients: Clients,
    name: str,
    kind: str,
    gated: bool,
    busy_of: Callable[[float], dict[str, float]],
) -> None:
    """Measure one kind of input, served and in a loop over ideal batches."""
    contents = _contents(options, kind, options.seed)
    call = CALL[kind] if not options.small else 8
    requests = [
        packed(contents[start : start + call], bulk=True) for start in range(0, len(contents), call)
    ]
    before, begun = _batches(), time.perf_counter()
    bulk = clients.bulk(requests, CLIENTS if not options.small else 3, options.seconds)
    if not options.small:  # on a busy CPU all could be over by then
        time.sleep(0.3 * options.seconds)  # until the queue is full
        before, begun = _batches(), time.perf_counter()
    time.sleep(0.4 * options.seconds)
    busy = busy_of(min(1.0, 0.2 * options.seconds))
    while (after := _batches()) == before and time.perf_counter() - begun < ONE_BATCH_S:
        time.sleep(0.01)  # on a busy machine one batch may take longer than all that time
    seconds = time.perf_counter() - begun
    bulk.calls_per_s()
    batches, inputs, cost, padding = (b - a for a, b in zip(before, after, strict=True))
    some = prepared(model, contents[: len(contents) // 2])
    alone = sum(one.cost for one in some) / offline_seconds(
        model, sorted_batches(some, limits.shape)
    )
    ratio = cost / seconds / alone
    found.row(
        f"{name}, {kind} served",
        inputs_per_s=inputs / seconds,
        tokens_per_s=cost / seconds,
        offline=alone,
        ratio=ratio,
        padding=padding / max(1.0, cost + padding),
        inputs_a_batch=inputs / max(1.0, batches),
        **busy,
    )
    if gated:
        found.gate(
            f"{name}, {kind}: served / offline >= {LEAST_SHARE}", ratio, ratio >= LEAST_SHARE
        )
    if gated and "busy" in busy:
        share = busy["busy"]
        found.gate(f"{name}, {kind}: device busy >= {LEAST_BUSY}", share, share >= LEAST_BUSY)


def beside_bulk(
    options: Options, found: Found, bulk: Clients, queries: Clients, name: str, gated: bool
) -> None:
    """Measure queries at a steady rate, alone and beside bulk work."""
    contents = _contents(options, "texts", options.seed + 1)
    call = 64 if not options.small else 8
    requests = [
        packed(contents[start : start + call], bulk=True) for start in range(0, len(contents), call)
    ]
    make = Inputs(options.seed + 2).queries

    def ask(seconds: float) -> list[float]:
        count = max(4, int(seconds * QUERIES_PER_S))
        return queries.paced([packed([one], bulk=False) for one in make(count)], QUERIES_PER_S)

    ask(0.2 * options.seconds)  # so that queries are expected
    idle = ask(options.seconds)
    work = bulk.bulk(requests, CLIENTS if not options.small else 3, 1.6 * options.seconds)
    ask(0.3 * options.seconds)
    busy = ask(options.seconds)
    rate = call * work.calls_per_s()
    rows = {"idle": idle, "beside bulk": busy}
    for what, times in rows.items():
        found.row(
            f"{name}, queries {what}",
            median_ms=1e3 * float(np.median(times)),
            p99_ms=1e3 * float(np.percentile(times, 99)),
            n=len(times),
            bulk_per_s=rate if times is busy else None,
        )
    slower = float(np.percentile(busy, 99) / np.percentile(idle, 99))
    if gated:
        found.gate(
            f"{name}: p99 of a query beside bulk <= {MOST_SLOWER:g} x idle",
            slower,
            slower <= MOST_SLOWER,
        )


def _batches() -> tuple[float, float, float, float]:
    """Return batches, inputs, cost and padding up to now."""
    return (
        _sum(metrics.batch_inputs, "_count"),
        _sum(metrics.batch_inputs, "_sum"),
        _sum(metrics.batch_cost_total, "_total"),
        _sum(metrics.padding_cost_total, "_total"),
    )


def _sum(metric: Any, suffix: str) -> float:
    return sum(
        sample.value
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith(suffix)
    )


def device_busy(options: Options, seconds: float) -> dict[str, float]:
    """Return the share of the time in which a kernel or copy ran, and what the gaps were.

    Empty without a GPU. Gaps below 20 microseconds are those between any two kernels.
    """
    if not options.is_cuda:
        time.sleep(seconds)
        return {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        time.sleep(seconds)
    spans = sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in profile.profiler.kineto_results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA and event.duration_ns() > 0
    )
    if not spans:
        return {"busy": 0.0}
    gaps, end = [], spans[0][1]
    for begin, stop in spans:
        gaps.append(max(0, begin - end))
        end = max(end, stop)
    whole, idle = end - spans[0][0], np.array(gaps)
    return {
        "busy": 1 - float(idle.sum() / whole),
        "idle_in_short_gaps": float(idle[idle < 20_000].sum() / whole),
        "longest_gap_ms": float(idle.max() / 1e6),
    }


def decoding(options: Options, found: Found, name: str) -> None:
    """Measure how many pictures a second are prepared by so many threads."""
    with models.opened(name, small=options.small, device=options.device, dtype="bfloat16") as sized:
        contents = Inputs(options.seed, options.scale).pictures(8 if options.small else 256)
        for threads in (1, 4, 8, 16):
            with ThreadPoolExecutor(threads) as pool:
                begun = time.perf_counter()
                done = list(
                    pool.map(
                        lambda one: sized.model.prepare(one, Role.CANDIDATE, ""),
                        itertools.islice(contents, 8 * threads if not options.small else 8),
                    )
                )
                seconds = time.perf_counter() - begun
            found.row(f"{name}, prepared by {threads} threads", pictures_per_s=len(done) / seconds)
