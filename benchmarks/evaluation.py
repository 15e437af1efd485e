"""Does `mmesh evaluate` stay small on large pools, and does it keep up with the mesh?

Pools of short texts, up to 200,000, are measured by the command as a process of its own: its peak
memory (RSS), and how fast it puts rows in. In the same run and in turn with it `mmesh ingest` puts
in the same file; rows that are in are those that the gateway counts, and of several times the
fastest counts. Searches are asked again and again in turn, and the median counts, since other
programs take their share of the machine: those of the command, from reading the queries to writing
the answers, and those of a client that does nothing but SearchBatch, as many calls at a time. The
encoder is a table of random vectors of words (hashing_model.py), so that nobody waits for it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
from bench import PATIENCE_S, Cell, Mesh, Report, options_of, run, running_mesh
from encoder_process import Texts
from hashing_model import lay_out

from mmesh import Search
from mmesh.errors import CollectionNotFound, MmeshError
from mmesh.evaluation.datasets.dataset import Query, Task
from mmesh.evaluation.datasets.own import Own
from mmesh.evaluation.live.answers import AnswerLog
from mmesh.evaluation.live.contents import content_of
from mmesh.evaluation.live.searching import Plan, Searcher
from mmesh.evaluation.options import Effort, Options
from mmesh.evaluation.watching import Silent

COMMAND = """\
import atexit, sys
from mmesh.cli import main
atexit.register(lambda: sys.stderr.write(open("/proc/self/status").read()))
main()
"""
"""The command `mmesh`, which says in the end what memory it took at most."""
COUNTED, LOOK_S = "mmesh_gateway_ingested_total ", 0.1
WORDS, KEPT = 9, 6
"""Words of a text, and those of them that its query has."""
BLOCK = 1000
"""Searches between two turns."""
MEMORY, RATE = 1.1, 0.9
EFFORT = Effort()


def write_dataset(folder: Path, rows: int, queries: int, seed: int) -> Path:
    """Write a pool, and queries that are each a text of it without some of its words."""
    folder.mkdir()
    texts, random = Texts(seed), np.random.default_rng(seed)
    asked = set(random.choice(rows, queries, replace=False).tolist())
    with (folder / "pool.jsonl").open("w") as pool, (folder / "queries.jsonl").open("w") as sought:
        for number in range(rows):
            name, text = f"c{number}", texts.of_words([WORDS])[0].text
            pool.write(json.dumps({"id": name, "text": text, "pool": "all"}) + "\n")
            if number in asked:
                words = " ".join(random.permutation(text.split())[:KEPT])
                query = {"id": f"q{number}", "text": words, "relevant": [name]}
                sought.write(json.dumps(query) + "\n")
    return folder


class Counting:
    """Looks all the time how many rows the gateway has taken in."""

    def __init__(self, metrics: str) -> None:
        self._url = f"http://{metrics}/metrics"
        self._seen: list[tuple[float, float]] = []

    def look(self) -> None:
        """Note how many there are now."""
        with urllib.request.urlopen(self._url, timeout=PATIENCE_S) as answer:
            lines = answer.read().decode().splitlines()
        count = float(next(line for line in lines if line.startswith(COUNTED)).split()[1])
        if not self._seen or count != self._seen[-1][1]:
            self._seen.append((time.perf_counter(), count))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look until the end of the block."""
        self._seen.clear()
        self.look()
        stop = threading.Event()

        def keep_looking() -> None:
            while not stop.wait(LOOK_S):
                self.look()

        thread = threading.Thread(target=keep_looking)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.look()

    @property
    def rate(self) -> float:
        """Rows a second, from the first that were seen to the last."""
        (began, first), (ended, last) = self._seen[1], self._seen[-1]
        return (last - first) / (ended - began)


@dataclass
class Measured:
    """What was measured of a pool; a value for each time."""

    rows: int
    peak_mb: float = 0.0
    ingest: dict[str, list[float]] = field(default_factory=lambda: {"mmesh": [], "plain": []})
    search: dict[str, list[float]] = field(default_factory=lambda: {"mmesh": [], "plain": []})
    hits: float = 0.0

    @property
    def row(self) -> list[Cell]:
        """A row of the table."""
        put = [max(self.ingest[way]) for way in ("mmesh", "plain")]
        asked = [median(self.search[way]) for way in ("mmesh", "plain")]
        rates = [rate for some in (put, asked) for rate in (*some, some[0] / some[1])]
        return [self.rows, self.peak_mb, *rates, self.hits]


class Bench:
    """The pools and the mesh that they are measured on."""

    def __init__(self, mesh: Mesh, work: Path, options: argparse.Namespace) -> None:
        self._mesh, self._work, self._options = mesh, work, options
        self._counting = Counting(mesh.metrics["gateway"])

    async def measure(self, rows: int) -> Measured:
        """Fill and search in turn; return all figures of a pool."""
        found, options = Measured(rows), self._options
        folder = write_dataset(self._work / f"rows-{rows}", rows, options.queries, options.seed)
        turns = max(1, min(options.turns, options.most // rows))
        for turn in range(turns):
            await self._ingest(folder, found, evaluates_first=turn % 2 == 0)
        await self._search(folder, found)
        print(f"{rows:,} rows: {found.peak_mb:.1f} MB at most", flush=True)
        return found

    async def _ingest(self, folder: Path, found: Measured, *, evaluates_first: bool) -> None:
        """Put the pool into two collections, one by each command."""
        ways = ["mmesh", "plain"] if evaluates_first else ["plain", "mmesh"]
        for way in ways:
            await self._drop(f"{way}-{folder.name}")
            with self._counting.running():
                if way == "mmesh":
                    status = await asyncio.to_thread(self._evaluate, folder, "--restart")
                    found.peak_mb = max(found.peak_mb, _peak_mb(status))
                else:
                    where = f"plain-{folder.name}", str(folder / "pool.jsonl")
                    await asyncio.to_thread(self._command, "ingest", *where)
            found.ingest[way].append(self._counting.rate)
        await self._drop(f"plain-{folder.name}")

    async def _search(self, folder: Path, found: Measured) -> None:
        client, options = self._mesh.client, self._options
        collection = await client.get_collection(f"mmesh-{folder.name}")
        dataset = Own(folder)
        (task,) = dataset.tasks
        plan = Plan(collection.name, collection.token, task, Options(), ())
        searches = [plan.searches(one, content_of(one))[0] for one in _queries(dataset, task)]
        await self._plainly(searches)  # the gateway remembers the embeddings from now on
        searcher = Searcher(client, EFFORT, Silent())
        for turn in range(options.rounds):
            queries = _queries(dataset, task)
            with AnswerLog(self._work / f"{folder.name}-{turn}.jsonl") as log:
                for start in range(0, len(searches), BLOCK):
                    ways: list[tuple[str, Callable[[], Awaitable[object]]]] = [
                        ("plain", partial(self._plainly, searches[start : start + BLOCK])),
                        ("mmesh", partial(searcher.run, plan, islice(queries, BLOCK), log, 0)),
                    ]
                    for way, ask in ways if (turn + start // BLOCK) % 2 else reversed(ways):
                        began = time.perf_counter()
                        await ask()
                        seconds = time.perf_counter() - began
                        found.search[way].append(len(searches[start : start + BLOCK]) / seconds)
        out = self._work / f"out-{folder.name}"
        figures = json.loads((out / "run.json").read_text())["tasks"][0]["figures"]
        found.hits = figures["hit@10"]["value"]
        await self._drop(collection.name)

    async def _plainly(self, searches: list[Search]) -> None:
        rest, free = iter(searches), asyncio.Semaphore(EFFORT.in_flight)

        async def call(some: list[Search]) -> None:
            async with free:
                answers = await self._mesh.client.search_batch(some, timeout=PATIENCE_S)
            refused = [one for one in answers if isinstance(one, MmeshError)]
            assert not refused, refused[0]

        calls = []
        while some := list(islice(rest, EFFORT.batch)):
            calls.append(call(some))
        await asyncio.gather(*calls)

    def _evaluate(self, folder: Path, *flags: str) -> str:
        out = str(self._work / f"out-{folder.name}")
        where = ("--collection", f"mmesh-{folder.name}", "--out", out)
        return self._command("evaluate", "run", str(folder), *where, *flags)

    def _command(self, *arguments: str) -> str:
        """Run `mmesh` to its end; return what it said on stderr."""
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments],
            capture_output=True,
            text=True,
            env=os.environ
            | {
                "MMESH_TARGET_ADDRESS": self._mesh.addresses["gateway"],
                "XDG_STATE_HOME": str(self._work / "state"),
            },
        )
        if done.returncode:
            raise SystemExit(f"mmesh {arguments[0]} failed:\n{done.stdout}{done.stderr}")
        return done.stderr

    async def _drop(self, name: str) -> None:
        with suppress(CollectionNotFound):
            await self._mesh.client.delete_collection(name)


def _queries(dataset: Own, task: Task) -> Iterator[Query]:
    return (one for one in dataset.queries(task) if isinstance(one, Query))


def _peak_mb(status: str) -> float:
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e3


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Measure pools of each size on one mesh."""
    with tempfile.TemporaryDirectory(prefix="mmesh-bench-") as name:
        work = Path(name)
        model = await asyncio.to_thread(lay_out, work / "hashing", options.seed)
        async with running_mesh(options.shards, "none", str(model)) as mesh:
            bench = Bench(mesh, work, options)
            found = [await bench.measure(rows) for rows in options.rows]
    _tell(report, found)


def _tell(report: Report, found: list[Measured]) -> None:
    header = ["rows", "peak MB", "rows in / s", "mmesh ingest / s", "share of ingest",
              "searches / s", "SearchBatch / s", "share of SearchBatch", "hit@10"]  # fmt: skip
    rows = [one.row for one in found]
    report.table("mmesh evaluate beside mmesh ingest and SearchBatch", header, rows)
    growth = max(one.peak_mb for one in found) / found[0].peak_mb
    sizes = f"{found[0].rows:,} to {found[-1].rows:,} rows"
    report.gate(f"peak memory from {sizes} grows by < 10 %", growth, growth < MEMORY)
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        for column in ("share of ingest", "share of SearchBatch"):
            share = float(cells[column])
            report.gate(f"{row[0]:,} rows: {column} >= 0.9", share, share >= RATE)


def main() -> int:
    """Run the benchmark."""
    parser = options_of(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=2, help="of both ingests, of small pools")
    parser.add_argument("--most", type=int, default=20_000, help="rows of all turns of a pool")
    parser.add_argument("--rounds", type=int, default=14, help="of all searches, both ways")
    return run("evaluation", parser, measure)


if __name__ == "__main__":
    sys.exit(main())
