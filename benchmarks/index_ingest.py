"""Writing to the index service: durable rates, building beside searches, loading a million rows.

- Durable writes of 100 rows a call from several clients, acknowledged after fsync, on SQLite and on
  PostgreSQL, in turns.
- Searches at a steady rate while 250,000 rows are built into a new segment and swapped in: beside
  the same searches while nothing else happens.
- A million rows loaded from a snapshot, and from the log alone. Rows beyond the real embeddings are
  made of them, see `embeddings.grown`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
from bench import Report, in_threads, milliseconds, options_of, run
from embeddings import embeddings, grown
from index_process import (
    CHANNEL,
    PATIENCE_S,
    IndexProcess,
    Values,
    fill,
    running_index,
    search_request,
    upsert_requests,
)

from mmesh.api.index.v1 import index_pb2
from mmesh.testing.postgres import PostgresServer

NAME = "texts"
BATCH = 100
CLIENTS = 8
MIB = 1 << 20
RATE = 50
"""Searches a second beside a build: few, so that what they wait for is the build."""


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Measure on a thread, since clients and processes are waited for there."""
    await asyncio.to_thread(_measure, options, report)


def _measure(options: argparse.Namespace, report: Report) -> None:
    rows, queries = embeddings(options.rows, options.work, options.texts)
    _measure_writes(report, rows, options)
    _measure_build(report, rows, queries, options)
    _measure_loads(report, grown(rows, options.most_rows, options.seed), queries)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mmesh-bench-") as folder:
        yield Path(folder)


# -- durable writes


def _measure_writes(report: Report, rows: Values, options: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {"SQLite": [], "PostgreSQL": []}
    seconds: dict[str, list[float]] = {"SQLite": [], "PostgreSQL": []}
    with _engines() as urls:
        for number in range(options.rounds):
            for engine, url in urls.items():
                rate, times = _write_some(url(), rows[: options.written], number)
                rates[engine].append(rate)
                seconds[engine] += times
    header = ["log", "rows / s", "slowest", "fastest", "median ms", "p99 ms", "calls"]
    table = [
        [
            engine,
            float(np.median(r)),
            min(r),
            max(r),
            *milliseconds(seconds[engine]),
            len(seconds[engine]),
        ]
        for engine, r in rates.items()
    ]
    report.table(f"Durable writes, {BATCH} rows a call, {CLIENTS} clients", header, table)
    for engine, found in rates.items():
        rate = float(np.median(found))
        report.gate(f"{engine}: at least 10,000 rows / s", rate, rate >= 10_000)


@contextmanager
def _engines() -> Iterator[dict[str, Callable[[], str]]]:
    with PostgresServer() as server:
        yield {"SQLite": lambda: "", "PostgreSQL": server.new_database}


def _write_some(url: str, rows: Values, number: int) -> tuple[float, list[float]]:
    """Return rows in a second, and the seconds of each call."""
    log = ["--log-url", url] if url else []
    with _folder() as folder, running_index(folder, *log) as index:
        index.create_collection(NAME, rows.shape[1])
        requests = [r.SerializeToString() for r in upsert_requests(NAME, rows, BATCH)]
        start = time.perf_counter()
        times = _send_all(index, requests)
        return len(rows) / (time.perf_counter() - start), times


def _send_all(index: IndexProcess, requests: list[bytes]) -> list[float]:
    times: list[float] = []
    waiting = iter(requests)
    lock = threading.Lock()

    def client(_: int) -> None:
        with grpc.insecure_channel(index.address, options=CHANNEL) as channel:
            call = channel.unary_unary("/mmesh.api.index.v1.IndexService/UpsertCandidates")
            while True:
                with lock:
                    request = next(waiting, None)
                if request is None:
                    return
                begun = time.perf_counter()
                call(request, timeout=PATIENCE_S)
                times.append(time.perf_counter() - begun)

    in_threads(CLIENTS, client)
    return times


# -- building beside searches


def _measure_build(
    report: Report, rows: Values, queries: Values, options: argparse.Namespace
) -> None:
    idle: list[float] = []
    building: list[float] = []
    built: list[float] = []
    failures = 0
    with _folder() as folder, running_index(folder, "--snapshot-s", "0") as index:
        index.create_collection(NAME, rows.shape[1])
        fill(index, NAME, rows)
        index.compact(NAME)
        for _ in range(options.rounds):
            for times, meanwhile in (
                (idle, lambda: time.sleep(10)),
                (building, lambda: _compact(index, built)),
            ):
                taken, failed = _search_while(index, queries, meanwhile)
                times += taken
                failures += failed
    table = [
        ["nothing else", *milliseconds(idle), len(idle), 0],
        ["a build and a swap", *milliseconds(building), len(building), failures],
    ]
    header = ["meanwhile", "median ms", "p99 ms", "searches", "failed"]
    report.table(f"{RATE} searches a second of {len(rows)} rows", header, table)
    report.fact("seconds of a build and a swap, median", float(np.median(built)))
    slower = milliseconds(building)[1] / milliseconds(idle)[1]
    report.gate("no search failed while a segment was built", failures, failures == 0)
    report.gate("p99 while building: at most twice the idle one", slower, slower <= 2)


def _compact(index: IndexProcess, built: list[float]) -> None:
    start = time.perf_counter()
    index.compact(NAME)
    built.append(time.perf_counter() - start)


def _search_while(
    index: IndexProcess, queries: Values, work: Callable[[], None]
) -> tuple[list[float], int]:
    """Search at a steady rate until `work` is done; return seconds from when each was due."""
    worker = threading.Thread(target=work)
    times: list[float] = []
    failed, number, start = 0, 0, time.perf_counter()
    with index.stub() as stub:
        worker.start()
        while worker.is_alive():
            due = start + number / RATE
            time.sleep(max(0.0, due - time.perf_counter()))
            query = queries[number % len(queries)][None]
            try:
                reply = stub.Search(search_request(NAME, query), timeout=10)
                failed += len(reply.lists[0].ids) < 10
            except grpc.RpcError:
                failed += 1
            times.append(time.perf_counter() - due)
            number += 1
    worker.join()
    return times, failed


# -- loading


def _measure_loads(report: Report, rows: Values, queries: Values) -> None:
    with _folder() as data:
        with running_index(data, "--snapshot-s", "0") as index:
            index.create_collection(NAME, rows.shape[1])
            fill(index, NAME, rows)
            index.compact(NAME)
            with index.stub() as stub:
                request = index_pb2.CreateSnapshotRequest(collection=NAME)
                stub.CreateSnapshot(request, timeout=PATIENCE_S)
                used = _vector_bytes(stub)
        table = [
            ["snapshot and log", *_load(data, queries)],
            ["log alone", *_load(data, queries, "--blobs-url", str(data / "none"))],
        ]
    header = ["from", "seconds", "peak MiB", "MiB then"]
    report.table(f"Loading {len(rows)} rows of {rows.shape[1]}", header, table)
    report.fact("bytes in memory of a row, all parts", used / len(rows))


def _vector_bytes(stub: object) -> float:
    state = stub.GetShard(index_pb2.GetShardRequest())  # type: ignore[attr-defined]  # a stub
    return float(sum(part.bytes for part in state.memory if part.name != "process"))


def _load(data: Path, queries: Values, *arguments: str) -> list[float]:
    """Return seconds until ready, peak MiB and MiB afterwards."""
    start = time.perf_counter()
    with running_index(data, "--snapshot-s", "0", *arguments) as index:
        seconds = time.perf_counter() - start
        with index.stub() as stub:
            reply = stub.Search(search_request(NAME, queries[:1]), timeout=PATIENCE_S)
            assert len(reply.lists[0].ids) == 10
        return [seconds, index.peak_bytes() / MIB, index.used_bytes() / MIB]


def main() -> int:
    """Run the benchmark."""
    parser = options_of(__doc__)
    parser.add_argument("--texts", type=Path, help="a text a line; by default Debian's packages")
    parser.add_argument("--rows", type=int, default=250_000, help="real rows")
    parser.add_argument("--written", type=int, default=50_000, help="rows of a turn of writing")
    parser.add_argument("--most-rows", type=int, default=1_000_000, help="rows that are loaded")
    parser.add_argument("--rounds", type=int, default=3, help="turns")
    return run("index_ingest", parser, measure)


if __name__ == "__main__":
    sys.exit(main())
