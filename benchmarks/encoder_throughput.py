"""What serving costs beside an offline loop, and what a query waits for while bulk work runs.

The service and a loop that calls the same model with batches sorted by length take turns, so that
both see the same machine; both prepare every input. No input is sent twice. The loop gives each
pass all cores; the service runs a pass on each core, since it prepares inputs meanwhile. Where
infinity-emb is installed (`make setup-infinity`), it serves the same text model to as many clients.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import infinity
import minilm
import numpy as np
from bench import Report, milliseconds, options_of, run
from encoder_process import (
    PATIENCE_S,
    EncoderProcess,
    Served,
    Texts,
    pack,
    pictures,
    running_encoder,
    saturated,
    saturated_rate,
    send_all,
)

from mmesh import Content
from mmesh.content import Role
from mmesh.models.encoders.families import EncoderChoice, open_encoder
from mmesh.models.protocol import EncoderModel, Prepared, encode_together
from mmesh.serving.batching.backlog import BatchShape

CORES = os.cpu_count() or 1
A_PASS_A_CORE = ("--device", ",".join(["cpu"] * CORES), "--threads", "1")
"""How the service runs: fastest where passes and preparation share the cores."""
CALL = 64
"""Inputs of a bulk call."""
CLIENTS = 8
"""Bulk calls at a time."""
QUERIES_PER_S = 20

Make = Callable[[int], list[Content]]


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Measure on a thread: clients are blocking."""
    await asyncio.to_thread(_measure, options, report)


def _measure(options: argparse.Namespace, report: Report) -> None:
    inputs = Inputs(options.seed)
    _measure_model(report, "lite", "lite", inputs.all_kinds(), options)
    folder = minilm.lay_out(options.work / "minilm")
    if _has_torch():
        _measure_model(report, "MiniLM in torch", str(folder), inputs.texts_alone(), options)
    _measure_queries(report, inputs, options)
    if options.infinity_python.exists():
        _measure_infinity(report, folder, inputs, options)


class Inputs:
    """Inputs that are never the same twice, by kind."""

    def __init__(self, seed: int) -> None:
        self.texts = Texts(seed)
        self._seeds = iter(range(seed, sys.maxsize))

    def all_kinds(self) -> dict[str, Make]:
        """Return a maker of about as much work for each kind."""
        return self.texts_alone() | {
            "pictures": lambda count: self._pictures(count // 2),
            "texts and pictures": self._mixed,
        }

    def texts_alone(self) -> dict[str, Make]:
        """Return the makers of texts."""
        return {"texts": self.texts.alike, "texts of lognormal length": self.texts.lognormal}

    def _pictures(self, count: int) -> list[Content]:
        return pictures(count, next(self._seeds))

    def _mixed(self, count: int) -> list[Content]:
        pictured = count // 5
        mixed = [*self.texts.alike(count - pictured), *self._pictures(pictured)]
        np.random.default_rng(next(self._seeds)).shuffle(mixed)  # type: ignore[arg-type]  # a list
        return mixed


# -- beside an offline loop


def _measure_model(
    report: Report, name: str, model: str, kinds: dict[str, Make], options: argparse.Namespace
) -> None:
    rows = []
    served = running_encoder("--model", model, *A_PASS_A_CORE)
    with offline_process() as offline, served as encoder:
        for kind, make in kinds.items():
            speeds = [
                _turn(model, make(options.inputs), make(options.inputs), offline, encoder)
                for _ in range(options.rounds + 1)
            ][1:]
            loop, service = np.median(speeds, axis=0).tolist()
            ratio = float(np.median([served / alone for alone, served in speeds]))
            rows.append([kind, loop, service, ratio])
            report.gate(f"{name}, {kind}: at least 0.90 of the offline loop", ratio, ratio >= 0.9)
    header = ["inputs", "offline a second", "served a second", "ratio"]
    report.table(f"{name}: {CLIENTS} clients with calls of {CALL}", header, rows)


def _turn(
    model: str,
    first: Sequence[Content],
    second: Sequence[Content],
    offline: ProcessPoolExecutor,
    encoder: EncoderProcess,
) -> tuple[float, float]:
    """Return inputs a second, in the offline loop and served."""
    alone = len(first) / offline.submit(encode_offline, model, first).result()
    return alone, CALL * saturated_rate(encoder, bulk_calls(second), CLIENTS)


def bulk_calls(contents: Sequence[Content]) -> list[bytes]:
    """Return the contents as calls of an ingest."""
    return [pack(call, bulk=True) for call in _in_calls(contents)]


def _in_calls(contents: Sequence[Content]) -> list[Sequence[Content]]:
    return [contents[start : start + CALL] for start in range(0, len(contents), CALL)]


@contextmanager
def offline_process() -> Iterator[ProcessPoolExecutor]:
    """Yield a process for the offline loop, which no client disturbs, set up like the service."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


def encode_offline(name: str, contents: Sequence[Content]) -> float:
    """Return the seconds to encode all contents, sorted by length, in batches as served."""
    model = _opened(name)
    begun = time.perf_counter()
    prepared = [model.prepare(content, Role.CANDIDATE, "") for content in contents]
    for batch in sorted_batches(prepared, BatchShape()):
        encode_together(model, batch)
    return time.perf_counter() - begun


def sorted_batches(prepared: Sequence[Prepared], shape: BatchShape) -> Iterator[list[Prepared]]:
    """Cut inputs, sorted by group and cost, into the largest batches that are allowed."""
    batch: list[Prepared] = []
    for one in sorted(prepared, key=lambda one: (one.group, one.cost)):
        full = len(batch) == shape.max_items or one.cost * (len(batch) + 1) > shape.max_cost
        if batch and (full or one.group != batch[0].group):
            yield batch
            batch = []
        batch.append(one)
    yield batch


@cache
def _opened(name: str) -> EncoderModel:
    return open_encoder(EncoderChoice(name, threads=CORES))


# -- queries while bulk work runs


def _measure_queries(report: Report, inputs: Inputs, options: argparse.Namespace) -> None:
    idle: list[float] = []
    busy: list[float] = []
    bulk = bulk_calls(inputs.texts.alike(CALL * 4 * CLIENTS))
    with running_encoder(*A_PASS_A_CORE) as encoder:
        _query_times(encoder, inputs, 1)
        for _ in range(options.rounds):
            idle += _query_times(encoder, inputs, options.seconds)
            with saturated(encoder, bulk, CLIENTS):
                busy += _query_times(encoder, inputs, options.seconds)
    rows = [["nothing", *milliseconds(idle), len(idle)], ["bulk", *milliseconds(busy), len(busy)]]
    header = ["meanwhile", "median ms", "p99 ms", "queries"]
    report.table(f"lite: single queries, {QUERIES_PER_S} a second", header, rows)
    slower = milliseconds(busy)[1] / milliseconds(idle)[1]
    report.gate(
        "p99 of a query during bulk work: at most 3 times the idle one", slower, slower <= 3
    )


def _query_times(encoder: EncoderProcess, inputs: Inputs, seconds: float) -> list[float]:
    """Send queries at a steady rate and return the seconds that each took from when it was due."""
    calls = [
        pack([text], bulk=False) for text in inputs.texts.alike(int(seconds * QUERIES_PER_S), 8)
    ]
    times: list[float] = []
    with encoder.encode() as encode:
        encode(pack(inputs.texts.alike(1), bulk=False), timeout=PATIENCE_S)
        start = time.perf_counter()
        for number, call in enumerate(calls):
            due = start + number / QUERIES_PER_S
            time.sleep(max(0.0, due - time.perf_counter()))
            encode(call, timeout=PATIENCE_S)
            times.append(time.perf_counter() - due)
    return times


# -- beside infinity


def _measure_infinity(
    report: Report, folder: Path, inputs: Inputs, options: argparse.Namespace
) -> None:
    """Let mmesh and infinity serve the same weights in turns, each alone on the machine."""
    rows = []
    for kind, make in inputs.texts_alone().items():
        speeds = [_beside_infinity(make, folder, options) for _ in range(options.rounds)]
        names = list(speeds[0])
        medians = {name: float(np.median([speed[name] for speed in speeds])) for name in names}
        rows.append([kind, *medians.values()])
        faster = max(medians[name] for name in names[:-1]) / medians["infinity"]
        report.gate(f"{kind}: at least 1.5 times as fast as infinity", faster, faster >= 1.5)
    report.table("MiniLM served, texts a second", ["inputs", *names], rows)


def _beside_infinity(make: Make, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    speeds = {}
    for name, model in _text_models(folder).items():
        with running_encoder("--model", model, *A_PASS_A_CORE) as encoder:
            speeds[name] = _speed(encoder, bulk_calls, make, options.inputs)
    with infinity.running_infinity(options.infinity_python, folder) as server:
        speeds["infinity"] = _speed(server, partial(_infinity_calls, folder), make, options.inputs)
    return speeds


def _speed(
    server: Served, calls: Callable[[Sequence[Content]], list[bytes]], make: Make, count: int
) -> float:
    """Return inputs a second, after as many calls to warm up as there are clients."""
    send_all(server, calls(make(CALL * CLIENTS)), CLIENTS)
    return CALL * saturated_rate(server, calls(make(count)), CLIENTS)


def _infinity_calls(folder: Path, contents: Sequence[Content]) -> list[bytes]:
    return [infinity.pack(folder, call) for call in _in_calls(contents)]


def _text_models(folder: Path) -> dict[str, str]:
    """Return what serves MiniLM's weights: lite does, and torch where it is installed."""
    torch = {"mmesh, torch": str(folder)} if _has_torch() else {}
    return {"mmesh, lite": "lite", **torch}


def _has_torch() -> bool:
    return bool(find_spec("torch") and find_spec("sentence_transformers"))


def main() -> int:
    """Run the benchmark."""
    parser = options_of(__doc__)
    parser.add_argument("--inputs", type=int, default=2560, help="texts of a turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns")
    parser.add_argument("--seconds", type=float, default=15.0, help="of queries in a turn")
    parser.add_argument(
        "--infinity-python", type=Path, default=infinity.PYTHON, help="left out if there is none"
    )
    return run("encoder_throughput", parser, measure)


if __name__ == "__main__":
    sys.exit(main())
