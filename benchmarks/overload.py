"""An encoder that is offered more than it can do: what it answers in time, and how it refuses.

Calls come at random moments, at 1, 2 and 4 times the rate that was measured as its capacity, each
with the same deadline and whether or not earlier ones are answered. No refused call is repeated.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np
from bench import Report, options_of, run
from encoder_process import (
    ENCODE,
    EncoderProcess,
    Texts,
    as_clients,
    pack,
    pictures,
    running_encoder,
    send_all,
)

from mmesh.wire.errors import error_of

CORES = os.cpu_count() or 1
TIMES = (1, 2, 4)
"""Offered load over capacity."""
CLIENTS = 8
"""Calls at a time when the capacity is measured."""
IN_TIME, REFUSED, LATE = "in time", "refused", "late"
MIB = 1 << 20


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Measure on a thread, since clients and processes are waited for there."""
    await asyncio.to_thread(_measure, options, report)


def _measure(options: argparse.Namespace, report: Report) -> None:
    texts = Texts(options.seed)
    calls = 2000
    kinds = {
        "16 texts": [pack(texts.alike(16), bulk=False) for _ in range(calls)],
        "a picture": [pack([one], bulk=False) for one in pictures(calls, options.seed)],
    }
    for kind, requests in kinds.items():
        with running_encoder("--threads", str(CORES)) as encoder:
            _overload(report, kind, encoder, requests, options)


@dataclass
class Offered:
    """What became of the calls of one load."""

    seconds: float
    outcomes: Counter[str] = field(default_factory=Counter)
    without_hint: int = 0

    @property
    def goodput(self) -> float:
        """Calls answered in time, a second."""
        return self.outcomes[IN_TIME] / self.seconds


def _overload(
    report: Report,
    kind: str,
    encoder: EncoderProcess,
    requests: Sequence[bytes],
    options: argparse.Namespace,
) -> None:
    capacity = _capacity(encoder, requests, options.seconds)
    rows, memory, loads = [], [encoder.used_bytes()], []
    for times in TIMES:
        load = Offered(options.seconds)
        offering = _offer(load, encoder, requests, times * capacity, options)
        as_clients(1, lambda _, offering=offering: asyncio.run(offering))
        memory.append(encoder.used_bytes())
        loads.append(load)
        counts = [load.outcomes[name] for name in (IN_TIME, REFUSED, LATE)]
        rows.append([f"{times} x", times * capacity, load.goodput, *counts, memory[-1] / MIB])
    header = ["offered", "calls a second", "in time a second", IN_TIME, REFUSED, LATE, "MiB"]
    title = f"Calls of {kind} with {options.deadline} s each, capacity {capacity:.1f} a second"
    report.table(title, header, rows)
    _judge(report, kind, loads, memory)


def _judge(report: Report, kind: str, loads: Sequence[Offered], memory: Sequence[int]) -> None:
    kept = loads[-1].goodput / max(load.goodput for load in loads)
    report.gate(f"{kind}: goodput at 4 times capacity is 0.9 of the peak", kept, kept >= 0.9)
    bare = sum(load.without_hint for load in loads)
    report.gate(f"{kind}: no refusal without a pause to make", bare, bare == 0)
    growth = memory[-1] / memory[1]
    report.gate(f"{kind}: memory at 4 times at most 1.1 of that at 1", growth, growth <= 1.1)
    odd = sum(load.outcomes.total() for load in loads) - sum(
        load.outcomes[name] for load in loads for name in (IN_TIME, REFUSED, LATE)
    )
    report.gate(f"{kind}: no other failure", odd, odd == 0)


def _capacity(encoder: EncoderProcess, requests: Sequence[bytes], seconds: float) -> float:
    """Return calls a second that are answered when there are always some to do."""
    send_all(encoder, requests[:CLIENTS], CLIENTS)
    begun = time.perf_counter()
    done = 0
    while time.perf_counter() - begun < seconds:
        send_all(encoder, requests[: 4 * CLIENTS], CLIENTS)
        done += 4 * CLIENTS
    return done / (time.perf_counter() - begun)


async def _offer(
    load: Offered,
    encoder: EncoderProcess,
    requests: Sequence[bytes],
    per_s: float,
    options: argparse.Namespace,
) -> None:
    """Send calls at random moments, `per_s` on average, and count what becomes of them."""
    random = np.random.default_rng(options.seed)
    moments = itertools.accumulate(random.exponential(1 / per_s, int(per_s * load.seconds)))
    async with grpc.aio.insecure_channel(encoder.address) as channel, asyncio.TaskGroup() as group:
        encode = channel.unary_unary(ENCODE)
        start = time.perf_counter()
        for request, moment in zip(itertools.cycle(requests), moments, strict=False):
            await asyncio.sleep(start + moment - time.perf_counter())
            group.create_task(_call(encode, request, options.deadline, load))


async def _call(
    encode: Callable[..., object], request: bytes, deadline: float, load: Offered
) -> None:
    try:
        await encode(request, timeout=deadline)  # type: ignore[misc]  # a call
    except grpc.aio.AioRpcError as failure:
        error = error_of(failure)
        names = {"RESOURCE_EXHAUSTED": REFUSED, "DEADLINE_EXCEEDED": LATE}
        name = names.get(failure.code().name, error.reason)
        load.outcomes[name] += 1
        load.without_hint += name == REFUSED and not error.retry_after_s
    else:
        load.outcomes[IN_TIME] += 1


def main() -> int:
    """Run the benchmark."""
    parser = options_of(__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--deadline", type=float, default=1.0, help="seconds of a call")
    return run("overload", parser, measure)


if __name__ == "__main__":
    sys.exit(main())
