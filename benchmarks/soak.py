"""Two hours of mixed load on a mesh of 2 x 2: does any process go on growing?

Texts and pictures are written, replaced, deleted and searched at a steady rate in a collection
whose size stays what it is, so that what still grows after the first quarter is a cache that fills
or a leak. Resident memory (RSS), open files and threads of every process are noted all the time;
the slope is that of a straight line through the samples after the first quarter. Two more slopes
tell what it consists of: that of anonymous memory (without the files that are mapped) and that of
the floor, which is the lowest sample of every five minutes: what is held between two batches of
work. A leak raises the floor; work in flight does not.

`--tight` tells the two apart: caches and the delta of the index get bounds that are reached within
minutes, and a burst at the start brings pools of threads and connections to theirs, so that what
still grows afterwards is a leak.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench import PATIENCE_S, Report, options_of, run
from encoder_process import Texts, pictures

from mmesh import AsyncClient, Candidate
from mmesh.errors import MmeshError
from mmesh.local import LocalMesh, LocalSettings

COLLECTION = "soak"
IDS = 4000
PICTURES = 400
"""Of the candidates, and as many other pictures that queries take in turn."""
SAMPLE_S = 15.0
FIRST_SHARE = 0.25
"""Of the time in which caches may fill."""
SLOPE = 0.05
"""Most MB that a process may grow by in a minute after that."""
FLOOR_MINUTES = 5.0
IN_FLIGHT = 8
BURSTS = 2
TIGHT = {
    "MMESH_RERANKER_TOKEN_CACHE_MIB": "8",
    "MMESH_RERANKER_SCORE_CACHE": "2048",
    "MMESH_GATEWAY_EMBEDDING_CACHE": "256",
    "MMESH_INDEX_SEAL_ROWS": "256",
    "MMESH_INDEX_SNAPSHOT_S": "60",
}
"""Settings with which everything that is bounded is full after a few minutes."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process holds at a moment."""

    minute: float
    rss_mb: float
    anonymous_mb: float
    files: int
    threads: int


def sample_of(pid: int, minute: float) -> Sample:
    """Look a process up in /proc."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {name: value for name, _, value in (line.partition(":") for line in status)}
    files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    rss, anonymous = (int(fields[name].split()[0]) / 1e3 for name in ("VmRSS", "RssAnon"))
    return Sample(minute, rss, anonymous, files, int(fields["Threads"]))


def slope(samples: list[Sample], held: Callable[[Sample], float] = lambda of: of.rss_mb) -> float:
    """Return MB a minute of the straight line that fits best (least squares)."""
    minutes = np.array([sample.minute for sample in samples])
    return float(np.polyfit(minutes, [held(sample) for sample in samples], 1)[0])


def floor(samples: list[Sample]) -> list[Sample]:
    """Return the sample with the least memory of every `FLOOR_MINUTES`."""
    windows = itertools.groupby(samples, lambda of: of.minute // FLOOR_MINUTES)
    return [min(window, key=lambda of: of.rss_mb) for _, window in windows]


class Load:
    """Operations on a collection whose size does not change."""

    def __init__(self, client: AsyncClient, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._client = client
        self._texts = Texts(seed)
        self._random = np.random.default_rng(seed)
        self._stored = pictures(PICTURES, seed)
        self._asked = pictures(PICTURES, seed + 1)

    async def fill(self) -> None:
        """Store every id once."""
        await self._client.create_collection(COLLECTION)
        for start in range(0, IDS, 200):
            ids = range(start, start + 200)
            await self._client.upsert_candidates(
                COLLECTION, [self._candidate(number) for number in ids], timeout=PATIENCE_S
            )

    async def burst(self) -> None:
        """Read, replace and search as much at once as pools have threads and connections for."""
        pictures = range(0, IDS, IDS // PICTURES)
        for _ in range(BURSTS):
            async with asyncio.TaskGroup() as group:
                for start in range(0, PICTURES // 2, 25):
                    some = [self._candidate(number) for number in pictures[start : start + 25]]
                    group.create_task(
                        self._client.upsert_candidates(COLLECTION, some, timeout=PATIENCE_S)
                    )
                for _ in range(50):
                    group.create_task(self.read())
                    group.create_task(self.search_text())

    def _candidate(self, number: int) -> Candidate:
        content = self._texts.lognormal(1)[0]
        if number % (IDS // PICTURES) == 0:
            content = self._stored[int(self._random.integers(PICTURES))]
        year = int(self._random.integers(1900, 2030))
        return Candidate(f"c{number}", content, {"year": year})

    def _ids(self, count: int) -> list[int]:
        return [int(number) for number in self._random.integers(0, IDS, count)]

    async def search_text(self) -> None:
        """Search by words that nobody searched for before."""
        year = int(self._random.integers(1900, 2030))
        await self._client.search(
            COLLECTION, self._texts.alike(1, 9)[0], filter=f"year >= {year}", timeout=PATIENCE_S
        )

    async def search_picture(self) -> None:
        """Search by a picture."""
        query = self._asked[int(self._random.integers(PICTURES))]
        await self._client.search(COLLECTION, query, timeout=PATIENCE_S)

    async def replace(self) -> None:
        """Write four candidates anew."""
        batch = [self._candidate(number) for number in set(self._ids(4))]
        await self._client.upsert_candidates(COLLECTION, batch, timeout=PATIENCE_S)

    async def delete(self) -> None:
        """Delete a candidate and put it back."""
        number = self._ids(1)[0]
        await self._client.delete_candidates(COLLECTION, [f"c{number}"], timeout=PATIENCE_S)
        await self._client.upsert_candidates(
            COLLECTION, [self._candidate(number)], timeout=PATIENCE_S
        )

    async def read(self) -> None:
        """Read candidates with their content."""
        ids = [f"c{number}" for number in self._ids(5)]
        await self._client.batch_get_candidates(COLLECTION, ids, timeout=PATIENCE_S)

    async def go_on(
        self, name: str, operation: Callable[[], Awaitable[None]], per_s: float, until: float
    ) -> None:
        """Do an operation at random moments, so many a second; failures are counted."""
        free = asyncio.Semaphore(IN_FLIGHT)
        async with asyncio.TaskGroup() as group:
            while time.monotonic() < until:
                await asyncio.sleep(self._random.exponential(1 / per_s))
                await free.acquire()
                group.create_task(self._counted(name, operation, free))

    async def _counted(
        self, name: str, operation: Callable[[], Awaitable[None]], free: asyncio.Semaphore
    ) -> None:
        try:
            await operation()
            self.done[name] += 1
        except MmeshError as error:
            self.done[f"{name}: {error.reason}"] += 1
        finally:
            free.release()


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Run the load and look at the processes beside it."""
    if options.tight:
        os.environ.update(TIGHT)
    with tempfile.TemporaryDirectory(prefix="mmesh-soak-") as folder:
        settings = LocalSettings(Path(folder), options.shards, port=0, replicas=2)
        async with LocalMesh(settings) as mesh, AsyncClient(mesh.address) as client:
            load = Load(client, options.seed)
            await load.fill()
            if options.tight:
                await load.burst()
            until = time.monotonic() + 60 * options.minutes
            watching = asyncio.create_task(_watch(mesh, until, options.minutes))
            async with asyncio.TaskGroup() as group:
                for name, per_s in RATES.items():
                    operation = getattr(load, name)
                    group.create_task(load.go_on(name, operation, per_s * options.load, until))
            _report(report, await watching, options.minutes)
            report.fact("done", dict(load.done))
            failed = sum(count for name, count in load.done.items() if ":" in name)
            report.gate("operations that failed, none", failed, failed == 0)


RATES = {"search_text": 6.0, "search_picture": 0.5, "replace": 2.0, "delete": 0.5, "read": 1.0}
"""Operations a second."""


async def _watch(mesh: LocalMesh, until: float, minutes: float) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = defaultdict(list)
    begun = time.monotonic()
    while (now := time.monotonic()) < until:
        for service in mesh.services:
            if service.process is not None and service.process.returncode is None:
                minute = (now - begun) / 60
                found[service.name].append(sample_of(service.process.pid, minute))
        if len(found["gateway"]) % 20 == 1:
            held = "  ".join(f"{name} {of[-1].rss_mb:.1f}" for name, of in found.items())
            print(f"{(now - begun) / 60:6.1f} of {minutes:g} min, MB: {held}", flush=True)
        await asyncio.sleep(min(SAMPLE_S, max(0.0, until - now)))
    return found


def _report(report: Report, found: dict[str, list[Sample]], minutes: float) -> None:
    rows = []
    for name, samples in found.items():
        late = [sample for sample in samples if sample.minute >= FIRST_SHARE * minutes]
        half = [sample for sample in samples if sample.minute >= 0.5 * minutes]
        first, last = samples[0], samples[-1]
        changes = [f"{first.files} -> {last.files}", f"{first.threads} -> {last.threads}"]
        held = [first.rss_mb, late[0].rss_mb, last.rss_mb]
        slopes = [slope(late), slope(late, lambda of: of.anonymous_mb), slope(floor(late))]
        rows.append([name, *held, *slopes, *changes])
        report.gate(
            f"{name} grows by at most {SLOPE} MB a minute", slope(late), slope(late) <= SLOPE
        )
        files = max(sample.files for sample in half) - max(sample.files for sample in late)
        report.gate(f"{name} keeps no more files open in the end", files, files <= 0)
    header = ["process", "MB first", "after a quarter", "last", "MB a minute", "anonymous",
              "floor", "files", "threads"]  # fmt: skip
    report.table(f"Memory over {minutes:g} minutes", header, rows)
    report.facts["samples"] = {
        name: [[round(s.minute, 1), round(s.rss_mb, 1), round(s.anonymous_mb, 1)] for s in samples]
        for name, samples in found.items()
    }


def main() -> int:
    """Run the benchmark."""
    parser = options_of(__doc__)
    parser.add_argument("--minutes", type=float, default=120.0, help="of load")
    parser.add_argument("--load", type=float, default=1.0, help="times the usual rates")
    parser.add_argument("--tight", action="store_true", help="bounds that are soon reached")
    return run("soak_tight" if "--tight" in sys.argv else "soak", parser, measure)


if __name__ == "__main__":
    sys.exit(main())
