"""A capacity plan held against a real index process, and carried on to a billion rows on paper.

Rows are random mixtures of few directions, about as hard to search as embeddings; they say what
memory, disk and time are like, and nothing about recall. The process, its log and its snapshots in
a folder are real. Five million rows take some hours on two cores.
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psycopg
from bench import Cell, Report, options_of, run
from index_process import (
    PATIENCE_S,
    IndexProcess,
    Values,
    fill,
    load,
    running_index,
    search_request,
)

from mmesh.api.index.v1 import index_pb2
from mmesh.capacity import Gpu, Wish, plan
from mmesh.capacity.coefficients import Coefficients
from mmesh.capacity.index_plan import most_bytes, process_bytes, row_bytes, search_ms, used_bytes
from mmesh.capacity.planning import log_row_bytes
from mmesh.testing.postgres import PostgresServer, postgres_path

NAME = "texts"
TEXT_BYTES = 11
"""Length of `row 1234567`."""
DIRECTIONS, GROUPS, NOISE = 24, 500, 0.3
"""Directions that rows are mixtures of, groups of rows, and what is added to each number."""
BLOCK = 50_000
QUERIES, CLIENTS = 1000, 8
MIB, MILLION = 1 << 20, 1_000_000
LOOK_S = 0.05
MEMORY_GATE, DISK_GATE = 1.25, 1.25
PAPER = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)


@dataclass(frozen=True, slots=True)
class Facts:
    """What one size takes, as it was planned or measured."""

    used_mib: float
    most_mib: float
    """Process and builder, while everything is merged."""
    log_mib: float
    snapshot_mib: float
    search_ms: float
    build_s: float
    load_snapshot_s: float
    load_log_s: float


NAMES = {
    "used_mib": "memory of the process, MiB",
    "most_mib": "with its builder, at most, MiB",
    "log_mib": "log, MiB",
    "snapshot_mib": "snapshot, MiB",
    "search_ms": "CPU ms a search, 8 clients",
    "build_s": "build, s",
    "load_snapshot_s": "start from a snapshot, s",
    "load_log_s": "start from the log alone, s",
}


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Measure on a thread, since clients and processes are waited for there."""
    await asyncio.to_thread(_measure, options, report)


def _measure(options: argparse.Namespace, report: Report) -> None:
    for size in options.sizes:
        planned = planned_facts(size, options.dim)
        found = measured_facts(size, options)
        rows: list[list[Cell]] = []
        for name, shown in NAMES.items():
            expected, got = getattr(planned, name), getattr(found, name)
            rows.append([shown, expected, got, got / expected])
        title = f"{size} rows of {options.dim}, one shard"
        report.table(title, ["what", "planned", "measured", "measured / planned"], rows)
        _judge(report, size, options, planned, found)
    report.table("On paper: dim 1024, 500 searches a second, two replicas", *paper())


def _judge(
    report: Report, size: int, options: argparse.Namespace, planned: Facts, found: Facts
) -> None:
    wish = Wish(size, options.dim, qps=1)
    share = found.most_mib * MIB / process_bytes(wish, size, Coefficients.load())
    report.gate(f"{size}: most memory is within what a pod is given", share, share <= 1)
    for name, most in (("used_mib", MEMORY_GATE), ("log_mib", DISK_GATE)):
        ratio = getattr(found, name) / getattr(planned, name)
        report.gate(f"{size}: {NAMES[name]}, within {most} of the plan", ratio, ratio <= most)


def planned_facts(size: int, dim: int) -> Facts:
    """Return what the plan says of one shard of so many rows."""
    measured = Coefficients.load()
    wish = Wish(size, dim, qps=1, replicas=1, pod_memory_gib=10**6, text_bytes=TEXT_BYTES)
    index = plan(wish).index
    return Facts(
        used_bytes(wish, size, measured) / MIB,
        most_bytes(wish, size, measured) / MIB,
        size * log_row_bytes(wish, measured) / MIB,
        size * row_bytes(wish, measured) / MIB,
        search_ms(wish, size, measured),
        index.build_s,
        index.load_snapshot_s,
        index.load_log_s,
    )


def measured_facts(size: int, options: argparse.Namespace) -> Facts:
    """Fill a process with so many rows, search, store, start again, and say what it took."""
    with tempfile.TemporaryDirectory(prefix="mmesh-bench-") as folder:
        data = Path(folder) / "data"
        data.mkdir()
        rows = random_rows(size, options.dim, options.seed, Path(folder) / "rows.npy")
        with log_in(options.log, data) as log:
            with running_index(data, "--snapshot-s", "0", *log.arguments) as index:
                most, build_s, milliseconds = _use(index, rows, options)
            log_bytes = log.size()
            load_snapshot_s, used = _start(data, *log.arguments)
            nothing = ("--blobs-url", str(Path(folder) / "none"))
            load_log_s, _ = _start(data, *log.arguments, *nothing)
        files = [path for path in data.rglob("snapshots/**/*") if path.is_file()]
        snapshots = sum(path.stat().st_size for path in files)
    return Facts(
        used / MIB,
        most / MIB,
        log_bytes / MIB,
        snapshots / MIB,
        milliseconds,
        build_s,
        load_snapshot_s,
        load_log_s,
    )


def _use(index: IndexProcess, rows: Values, options: argparse.Namespace) -> tuple[float, ...]:
    """Fill, build, search, store; return the most bytes, seconds of the build, ms of a search."""
    index.create_collection(NAME, options.dim)
    fill(index, NAME, rows)
    start = time.perf_counter()
    with most_memory(index) as seen:
        index.compact(NAME)
    build_s = time.perf_counter() - start
    milliseconds = _search(index, options)
    with index.stub() as stub:
        request = index_pb2.CreateSnapshotRequest(collection=NAME)
        stub.CreateSnapshot(request, timeout=PATIENCE_S)
    return max(seen), build_s, milliseconds


@dataclass(frozen=True, slots=True)
class LogPlace:
    """Where the log is, as the process is told, and how large it has become."""

    arguments: tuple[str, ...]
    size: Callable[[], int]


@contextmanager
def log_in(engine: str, data: Path) -> Iterator[LogPlace]:
    """Yield a place for a log in SQLite, or in a PostgreSQL that ends in the end."""
    if engine == "sqlite":
        yield LogPlace((), lambda: sum(path.stat().st_size for path in data.glob("log.db*")))
        return
    with PostgresServer(fsync=False) as server:
        url = server.new_database()
        before = _database_bytes(url)
        yield LogPlace(("--log-url", url), lambda: _database_bytes(url) - before)


def _database_bytes(url: str) -> int:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        found = connection.execute("select pg_database_size(current_database())").fetchone()
    return int(found[0]) if found else 0


def random_rows(size: int, dim: int, seed: int, path: Path) -> Values:
    """Return rows of length 1 in a file that is mapped, so that the most may exceed memory."""
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (size, dim))
    for start in range(0, size, BLOCK):
        rows[start : start + BLOCK] = _drawn(len(rows[start : start + BLOCK]), dim, seed, start + 1)
    return rows


def _drawn(n: int, dim: int, seed: int, part: int) -> Values:
    shared = np.random.default_rng(seed)
    directions = shared.standard_normal((DIRECTIONS, dim), np.float32)
    groups = shared.standard_normal((GROUPS, DIRECTIONS), np.float32)
    draw = np.random.default_rng([seed, part])
    mixture = groups[draw.integers(GROUPS, size=n)]
    mixture = mixture + draw.standard_normal((n, DIRECTIONS), np.float32)
    found: Values = mixture @ directions / np.float32(np.sqrt(DIRECTIONS))
    found += np.float32(NOISE) * draw.standard_normal((n, dim), np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _search(index: IndexProcess, options: argparse.Namespace) -> float:
    queries = _drawn(QUERIES, options.dim, options.seed, 0)
    asked = [search_request(NAME, queries[n : n + 1]) for n in range(len(queries))]
    load(index, asked, CLIENTS, options.seconds / 5)
    return 1000 / load(index, asked, CLIENTS, options.seconds).per_core


def _start(data: Path, *arguments: str) -> tuple[float, int]:
    """Return seconds until a process on the same folder is ready, and its bytes then."""
    start = time.perf_counter()
    with running_index(data, "--snapshot-s", "0", *arguments) as index:
        return time.perf_counter() - start, index.used_bytes()


@contextmanager
def most_memory(index: IndexProcess) -> Iterator[list[int]]:
    """Yield a list that gets bytes of a process and those that it started, again and again."""
    seen, done = [index.used_bytes()], threading.Event()

    def look() -> None:
        while not done.wait(LOOK_S):
            seen.append(index.used_bytes() + sum(map(_own_bytes, _children(index.pid))))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        done.set()
        looking.join()


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, listed.read_text().split())
        except OSError:
            continue  # a thread that has ended
    return found


def _own_bytes(pid: int) -> int:
    """Return the memory of a process that is not of a file; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def paper() -> tuple[list[str], list[list[Cell]]]:
    """Return what plans say of more rows than were ever measured."""
    header = ["rows", "shards", "rows / shard", "index pods", "GiB a pod", "cores a pod",
              "CPU ms a search and shard", "gateways", "build, h", "new set, h"]  # fmt: skip
    return header, [_paper_row(rows) for rows in PAPER]


def _paper_row(rows: int) -> list[Cell]:
    found = plan(Wish(rows, 1024, qps=500, gpu=Gpu.H200))
    index, pods = found.index, {one.name: one for one in found.pods}
    return [
        rows, index.shards, index.rows, pods["index"].count, index.memory_bytes / 2**30,
        index.cores, index.search_ms, pods["gateway"].count, index.build_s / 3600,
        index.load_log_s / 3600,
    ]  # fmt: skip


def main() -> int:
    """Run the benchmark."""
    parser = options_of(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000], help="rows")
    parser.add_argument("--dim", type=int, default=384, help="width of a row")
    engines = ("postgresql", "sqlite")
    parser.add_argument("--log", choices=engines, default=engines[postgres_path() is None])
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of searching")
    return run("capacity", parser, measure)


if __name__ == "__main__":
    sys.exit(main())
