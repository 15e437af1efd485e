"""Searches through the index service beside FAISS in this process, on the same index.

250,000 real text embeddings are written through gRPC and merged into one segment, whose file this
process reads as well. Both search it with the same parameters, in turns, in one run. What is
compared is queries in a CPU second (of this process, or of the service's), since the machine is
shared; the clients' CPU is left out. The service has one core for itself, as a process that serves
"one core" has; clients and FAISS in this process have the others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from bench import Report, milliseconds, options_of, run
from embeddings import embeddings
from index_process import (
    IndexProcess,
    Load,
    Values,
    fill,
    load,
    running_index,
    search_request,
)

from mmesh.api.index.v1 import index_pb2

LIMIT = 10
BATCH = 64
CLIENTS = 8
CROWD = 32
NAME, EXACT = "texts", "exact"


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Measure on a thread, since clients and processes are waited for there."""
    await asyncio.to_thread(_measure, options, report)


def _measure(options: argparse.Namespace, report: Report) -> None:
    """Fill the service, then let the ways of searching take turns."""
    rows, queries = embeddings(options.rows, options.work, options.texts)
    with tempfile.TemporaryDirectory(prefix="mmesh-bench-") as folder:
        scratch = Path(folder) / "scratch"
        arguments = ("--scratch-dir", str(scratch))
        with running_index(Path(folder), *arguments, on_one_core=True) as index:
            index.create_collection(NAME, rows.shape[1])
            fill(index, NAME, rows)
            (segment,) = index.compact(NAME)
            report.fact("segment", f"{segment.index_factory}, nprobe {segment.nprobe}")
            report.fact("recall at build", segment.recall)
            in_process = InProcess.read(scratch)
            truth = _truth(rows, queries)
            _report_recall(report, index, in_process, queries, truth)
            turns = _take_turns(index, in_process, queries, options)
            _report_turns(report, turns)
            _measure_exact(report, index, queries, options)


@dataclass(frozen=True, slots=True)
class InProcess:
    """The service's own segment, read into this process."""

    index: Any
    parameters: Any

    @classmethod
    def read(cls, scratch: Path) -> InProcess:
        """Return the largest segment under `scratch`."""
        files = scratch.glob("*/*/index.faiss")
        file = max(files, key=lambda path: path.stat().st_size)
        about = json.loads((file.parent / "segment.json").read_text())
        faiss.omp_set_num_threads(1)
        lists = faiss.SearchParametersIVF(nprobe=about["nprobe"])
        factor = math.nextafter(about["depth"] / LIMIT, math.inf)  # rounded down, it is right
        refine = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=lists)
        return cls(faiss.read_index(str(file)), refine)

    def search(self, queries: Values) -> Values:
        """Return the scores of the nearest rows of each query."""
        return self.index.search(queries, LIMIT, params=self.parameters)[0]


def _truth(rows: Values, queries: Values) -> Values:
    return faiss.knn(queries, rows, LIMIT, metric=faiss.METRIC_INNER_PRODUCT)[1]


def _recall(found: Sequence[Sequence[int]], truth: Values) -> float:
    shared = [len(set(a) & set(b.tolist())) for a, b in zip(found, truth, strict=True)]
    return float(np.mean(shared) / LIMIT)


def _report_recall(
    report: Report, index: IndexProcess, in_process: InProcess, queries: Values, truth: Values
) -> None:
    lists: list[index_pb2.HitList] = []
    with index.stub() as stub:
        for start in range(0, len(queries), BATCH):
            request = search_request(NAME, queries[start : start + BATCH])
            lists += stub.Search(request, timeout=60).lists
    recall = _recall([[int(found[4:]) for found in hits.ids] for hits in lists], truth)
    report.fact("recall at 10 of the service, held-out queries", recall)
    scores = np.stack([np.frombuffer(hits.scores, "<f4") for hits in lists])
    apart = float(np.abs(scores - in_process.search(queries)).max())
    report.gate("recall at 10 is at least 0.97", recall, recall >= 0.97)
    report.gate("the same scores as in process, within 1e-6", apart, apart <= 1e-6)


@dataclass
class Turns:
    """What each way of searching took, by round."""

    unary_core: list[float] = field(default_factory=list)
    batch_core: list[float] = field(default_factory=list)
    single: list[Load] = field(default_factory=list)
    several: list[Load] = field(default_factory=list)
    batches: list[Load] = field(default_factory=list)
    inside_seconds: list[float] = field(default_factory=list)


def _take_turns(
    index: IndexProcess, in_process: InProcess, queries: Values, options: argparse.Namespace
) -> Turns:
    singles = [search_request(NAME, queries[n : n + 1]) for n in range(len(queries))]
    batches = [
        search_request(NAME, queries[n : n + BATCH]) for n in range(0, len(queries) - BATCH, BATCH)
    ]
    turns = Turns()
    for _ in range(options.rounds):
        per_core, seconds = _inside(in_process.search, queries, 1, options.seconds)
        turns.unary_core.append(per_core)
        turns.inside_seconds += seconds
        turns.single.append(load(index, singles, 1, options.seconds))
        turns.several.append(load(index, singles, CLIENTS, options.seconds))
        turns.batch_core.append(_inside(in_process.search, queries, BATCH, options.seconds)[0])
        turns.batches.append(load(index, batches, 1, options.seconds, BATCH))
    return turns


def _inside(
    search: Callable[[Values], Values], queries: Values, batch: int, duration_s: float
) -> tuple[float, list[float]]:
    """Return queries in a CPU second of this process, and the seconds of each call."""
    seconds: list[float] = []
    until, cpu, start = time.perf_counter() + duration_s, time.process_time(), 0
    while time.perf_counter() < until:
        begun = time.perf_counter()
        search(queries[start : start + batch])
        seconds.append(time.perf_counter() - begun)
        start = (start + batch) % (len(queries) - batch)
    return len(seconds) * batch / (time.process_time() - cpu), seconds


def _report_turns(report: Report, turns: Turns) -> None:
    singles = [s for one in turns.single for s in one.seconds]
    inside = milliseconds(turns.inside_seconds)
    rows = [
        ["in process, one query", *inside, float(np.median(turns.unary_core)), "-"],
        _row("service, 1 client", turns.single),
        _row(f"service, {CLIENTS} clients", turns.several),
        ["in process, 64 queries", "-", "-", float(np.median(turns.batch_core)), "-"],
        _row("service, 64 queries a call", turns.batches),
    ]
    header = ["way", "median ms", "p99 ms", "queries / CPU s", "queries / s"]
    report.table("Searches", header, rows)
    unary = _ratio([one.per_core for one in turns.several], turns.unary_core)
    batch = _ratio([one.per_core for one in turns.batches], turns.batch_core)
    added = milliseconds(singles)[0] - inside[0]
    report.gate("unary, queries per server core: 0.45 of in process", unary, unary >= 0.45)
    report.gate("64 queries a call: 0.90 of in process", batch, batch >= 0.90)
    report.gate("added median of one client: at most 0.8 ms", added, added <= 0.8)


def _row(name: str, loads: Sequence[Load]) -> list[Any]:
    times = milliseconds([s for one in loads for s in one.seconds])
    return [
        name,
        *times,
        float(np.median([one.per_core for one in loads])),
        float(np.median([one.per_second for one in loads])),
    ]


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return float(np.median(np.divide(ours, theirs)))


def _measure_exact(
    report: Report, index: IndexProcess, queries: Values, options: argparse.Namespace
) -> None:
    """Merge the same rows into an exact segment: there a batch is one matrix product."""
    index.set_settings(NAME, index_factory="Flat")
    (segment,) = index.compact(NAME)
    singles = [search_request(NAME, queries[n : n + 1]) for n in range(len(queries))]
    alone, crowd = [], []
    for _ in range(options.rounds):
        alone.append(load(index, singles, 1, options.seconds))
        crowd.append(load(index, singles, CROWD, options.seconds))
    rows = [_row("1 client, no batches", alone), _row(f"{CROWD} clients", crowd)]
    header = ["way", "median ms", "p99 ms", "queries / CPU s", "queries / s"]
    report.table(f"Exact searches ({segment.index_factory})", header, rows)
    gain = _ratio([c.per_second for c in crowd], [a.per_second for a in alone])
    report.gate("exact, 32 clients: 3.5 times the rate of one", gain, gain >= 3.5)


def main() -> int:
    """Run the benchmark."""
    parser = options_of(__doc__)
    parser.add_argument("--texts", type=Path, help="a text a line; by default Debian's packages")
    parser.add_argument("--rows", type=int, default=250_000, help="rows that are searched")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of a turn")
    return run("index_search", parser, measure)


if __name__ == "__main__":
    sys.exit(main())
