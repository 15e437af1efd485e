"""One table of growth: a collection of 10,000, 100,000 and 1,000,000 rows in one shard.

Rows beyond the real embeddings are made of them, see `embeddings.grown`. Half of the queries are
asked before the segment is built, which is tuned for them; recall is that of the other half.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from bench import Report, milliseconds, options_of, run
from embeddings import embeddings, grown
from index_process import (
    PATIENCE_S,
    IndexProcess,
    Values,
    fill,
    load,
    rows_of,
    running_index,
    search_request,
)

from mmesh.api.index.v1 import index_pb2

NAME = "texts"
LIMIT = 10
MIB = 1 << 20
HEADER = [
    "rows", "index", "nprobe", "recall", "median ms", "p99 ms", "10 % filter ms", "bytes / row",
    "disk / row", "write rows / s", "build s", "load s",
]  # fmt: skip


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Measure on a thread, since clients and processes are waited for there."""
    await asyncio.to_thread(_measure, options, report)


def _measure(options: argparse.Namespace, report: Report) -> None:
    real = min(max(options.sizes), options.real)
    rows, queries = embeddings(real, options.work, options.texts)
    rows = grown(rows, max(options.sizes), options.seed)
    table = [_measure_size(rows[:size], queries, options) for size in options.sizes]
    report.table("Growth of one shard, one client", HEADER, table)
    worst = min(row[3] for row in table)
    report.gate("recall at 10 is at least 0.97 at each size", worst, worst >= 0.97)


def _measure_size(rows: Values, queries: Values, options: argparse.Namespace) -> list[Any]:
    with tempfile.TemporaryDirectory(prefix="mmesh-bench-") as folder:
        data = Path(folder)
        with running_index(data, "--snapshot-s", "0") as index:
            index.create_collection(NAME, rows.shape[1])
            start = time.perf_counter()
            fill(index, NAME, rows, attributes=lambda n: {"tenth": {"integer_value": n % 10}})
            rate = len(rows) / (time.perf_counter() - start)
            asked, held_out = queries[: len(queries) // 2], queries[len(queries) // 2 :]
            _recall(index, rows, asked)  # from now on the index knows what it is asked
            start = time.perf_counter()
            (segment,) = index.compact(NAME)
            build_s = time.perf_counter() - start
            recall = _recall(index, rows, held_out)
            seconds, filtered_s = _search(index, held_out, options.seconds)
            with index.stub() as stub:
                request = index_pb2.CreateSnapshotRequest(collection=NAME)
                stub.CreateSnapshot(request, timeout=PATIENCE_S)
        disk = sum(f.stat().st_size for f in data.rglob("*") if f.is_file())
        start = time.perf_counter()
        with running_index(data, "--snapshot-s", "0"):
            load_s = time.perf_counter() - start
    return [
        len(rows), segment.index_factory, segment.nprobe, recall, *milliseconds(seconds),
        milliseconds(filtered_s)[0], segment.bytes / len(rows), disk / len(rows), rate, build_s,
        load_s,
    ]  # fmt: skip


def _search(
    index: IndexProcess, queries: Values, duration_s: float
) -> tuple[list[float], list[float]]:
    plain = [search_request(NAME, queries[n : n + 1]) for n in range(len(queries))]
    tenth = index_pb2.SearchRequest()
    tenth.filter.compare.attribute = "tenth"
    tenth.filter.compare.operator = 1
    tenth.filter.compare.value.integer_value = 3
    filtered = [search_request(NAME, queries[n : n + 1], filter=tenth.filter) for n in range(500)]
    load(index, plain, 1, 1.0)
    seconds = load(index, plain, 1, duration_s).seconds
    return seconds, load(index, filtered, 1, duration_s).seconds


def _recall(index: IndexProcess, rows: Values, queries: Values) -> float:
    truth = faiss.knn(queries, rows, LIMIT, metric=faiss.METRIC_INNER_PRODUCT)[1]
    shared = 0
    with index.stub() as stub:
        for start in range(0, len(queries), 50):
            request = search_request(NAME, queries[start : start + 50])
            found = rows_of(stub.Search(request, timeout=PATIENCE_S))
            right = truth[start : start + 50].tolist()
            shared += sum(len(set(a) & set(b)) for a, b in zip(found, right, strict=True))
    return shared / np.size(truth)


def main() -> int:
    """Run the benchmark."""
    parser = options_of(__doc__)
    parser.add_argument("--texts", type=Path, help="a text a line; by default Debian's packages")
    parser.add_argument("--real", type=int, default=250_000, help="real rows, at most")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="rows"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of searching")
    return run("index_growth", parser, measure)


if __name__ == "__main__":
    sys.exit(main())
