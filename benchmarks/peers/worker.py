"""One vector store in a process of its own: `python -m peers.worker PEER FOLDER DATA`.

Reads a command from each line of its input and answers with a line, both JSON. Clients of a search
are threads here, or tasks of one event loop, each in a closed loop: it sends the next query when it
has the answer.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peers.contract import AsyncSearcher, Batch, Condition, Peer, Searcher, Setting
from peers.processes import cpu_seconds, memory_bytes

PEERS = {
    "ours": "ours:Ours",
    "ours-2": "ours:OursTwice",
    "qdrant-edge": "qdrant:QdrantEdge",
    "pgvector": "pgvector:PgVector",
    "milvus-lite": "milvus:MilvusLite",
    "lancedb": "lance:Lance",
    "chroma": "chroma:Chroma",
}
BUILT = "built.json"
"""File beside the folder of a store; holds what its build took."""
INGEST_BATCH = 100
WARM_UP = 5
"""Searches of each client before the clock starts."""


def peer_class(name: str) -> type[Peer]:
    """Return the class of a store.

    Raises:
        ImportError: the store is not installed.
    """
    module, _, title = PEERS[name].partition(":")
    found: type[Peer] = getattr(importlib.import_module(f"peers.{module}"), title)
    return found


class Data:
    """Rows and queries, as `index_peers.py` lays them out."""

    def __init__(self, folder: Path) -> None:
        self.rows = np.load(folder / "rows.npy", mmap_mode="r")
        self.queries = np.load(folder / "queries.npy")
        self.subs = np.load(folder / "subs.npy")
        self.texts = (folder / "texts.txt").read_text("utf-8").split("\n")[: len(self.rows)]

    def batches(self) -> Iterator[Batch]:
        """Yield all rows, 100 at a time."""
        for start in range(0, len(self.rows), INGEST_BATCH):
            part = slice(start, min(start + INGEST_BATCH, len(self.rows)))
            subs = self.subs[part].tolist()
            yield Batch(
                ids=range(part.start, part.stop),
                vectors=np.ascontiguousarray(self.rows[part]),
                cats=[sub // 10 for sub in subs],
                subs=subs,
                texts=self.texts[part],
            )


class Worker:
    """Does what the commands say; each method that is named like one returns the answer to it."""

    def __init__(self, name: str, folder: Path, data: Path) -> None:
        self._data = Data(data)
        self._class = peer_class(name)
        self._folder = folder
        self._key = f"{name} {self._class.version()} {data.name}"
        self._peer = self._class(folder / "store")
        self._is_open = False
        self._searchers: dict[tuple[int, str], Searcher | AsyncSearcher] = {}
        self._runner = asyncio.Runner()

    def about(self) -> dict[str, Any]:
        """Say what runs here."""
        texts = {name: getattr(self._class, name) for name in ("about", "durable", "about_clients")}
        return {"version": self._class.version(), **texts}

    def settings(self, recall: float) -> dict[str, Any]:
        """Say what settings may reach a recall."""
        return {"settings": self._class.settings(recall)}

    def build(self) -> dict[str, Any]:
        """Open the store, after filling it unless the same rows are in it."""
        built = self._folder / BUILT
        if self._class.is_kept and built.exists():
            kept: dict[str, Any] = json.loads(built.read_text())
            if kept["key"] == self._key:
                self._open()
                return {**kept, "cached": True}
        shutil.rmtree(self._folder, ignore_errors=True)
        self._peer.folder.mkdir(parents=True)
        self._open()
        took = self._fill()
        built.write_text(json.dumps(took))
        return {**took, "cached": False}

    def _open(self) -> None:
        self._peer.open()
        self._is_open = True

    def _fill(self) -> dict[str, Any]:
        clocks = [self._clock()]
        for batch in self._data.batches():
            self._peer.add(batch)
        clocks.append(self._clock())
        self._peer.finish()
        clocks.append(self._clock())
        (start, start_cpu), (added, added_cpu), (end, end_cpu) = clocks
        return {
            "key": self._key,
            "ingest_s": added - start,
            "ingest_cpu_s": added_cpu - start_cpu,
            "finish_s": end - added,
            "finish_cpu_s": end_cpu - added_cpu,
            **self.size(),
        }

    def _clock(self) -> tuple[float, float]:
        return time.perf_counter(), cpu_seconds(self._peer.processes())

    def size(self) -> dict[str, float]:
        """Return megabytes on the disk and in memory."""
        disk = sum(p.stat().st_blocks * 512 for p in self._peer.folder.rglob("*") if p.is_file())
        memory = memory_bytes(self._peer.processes())
        return {"disk_mb": disk / 1e6, "rss_mb": memory / 1e6}

    def detail(self, setting: Setting) -> dict[str, Any]:
        """Say more about searches with a setting."""
        return {"detail": self._peer.detail(setting)}

    def search(
        self,
        setting: Setting,
        clients: int,
        seconds: float,
        queries: int = 0,
        condition: Condition | None = None,
    ) -> dict[str, Any]:
        """Search for some seconds, or until so many queries are answered."""
        if condition is not None:
            condition = (condition[0], condition[1])
        self._peer.prepare(setting)
        kind = AsyncLoop if self._class.is_async else Loop
        loops: list[Any] = [
            kind(self._searcher(number, setting), self._data.queries, condition, number, clients)
            for number in range(clients)
        ]
        each = queries // clients if queries else sys.maxsize
        if self._class.is_async:
            return self._runner.run(run_tasks(loops, self._peer.processes(), seconds, each))
        return run_threads(loops, self._peer.processes(), seconds, each)

    def _searcher(self, client: int, setting: Setting) -> Searcher | AsyncSearcher:
        key = (client, json.dumps(setting))
        if key not in self._searchers:
            self._searchers[key] = self._peer.searcher(setting)
        return self._searchers[key]

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Return what a command comes to, errors too."""
        try:
            answer: dict[str, Any] = getattr(self, command.pop("do"))(**command)
        except Exception as error:  # the one that asked must hear of it
            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error}"}
        return answer

    def close(self) -> None:
        """Close the store, if it was opened."""
        self._searchers.clear()
        self._runner.close()
        if self._is_open:
            self._peer.close()


class Loop:
    """One client: asks every `step`-th query, from its own number on, again and again."""

    def __init__(
        self,
        searcher: Any,
        queries: np.ndarray[Any, Any],
        condition: Condition | None,
        number: int,
        step: int,
    ) -> None:
        self._searcher = searcher
        self._queries = queries
        self._condition = condition
        self._next = number
        self._step = step
        self.seconds: list[float] = []
        self.found: dict[int, list[int]] = {}
        self.error: Exception | None = None

    def warm_up(self) -> None:
        """Search a few times with queries from the end."""
        for number in range(WARM_UP):
            self._searcher(self._queries[-1 - number], self._condition)

    def run(self, until: float, searches: int) -> None:
        """Search until a time, or so many times."""
        clock, search = time.perf_counter, self._searcher
        condition, queries = self._condition, self._queries
        while clock() < until and len(self.seconds) < searches:
            number = self._next % len(queries)
            start = clock()
            ids = search(queries[number], condition)
            self._note(number, ids, clock() - start)

    def _note(self, number: int, ids: Sequence[int], seconds: float) -> None:
        self.seconds.append(seconds)
        self.found.setdefault(number, list(ids))
        self._next += self._step


class AsyncLoop(Loop):
    """The same with a searcher that is awaited."""

    async def warm_up(self) -> None:  # type: ignore[override]
        """Search a few times with queries from the end."""
        for number in range(WARM_UP):
            await self._searcher(self._queries[-1 - number], self._condition)

    async def run(self, until: float, searches: int) -> None:  # type: ignore[override]
        """Search until a time, or so many times."""
        clock, search = time.perf_counter, self._searcher
        condition, queries = self._condition, self._queries
        while clock() < until and len(self.seconds) < searches:
            number = self._next % len(queries)
            start = clock()
            ids = await search(queries[number], condition)
            self._note(number, ids, clock() - start)


async def run_tasks(
    loops: Sequence[AsyncLoop], processes: list[int], seconds: float, searches: int
) -> dict[str, Any]:
    """Run clients as tasks of this event loop and return what they saw."""
    await asyncio.gather(*(loop.warm_up() for loop in loops))
    cpu, start = cpu_seconds(processes), time.perf_counter()
    await asyncio.gather(*(loop.run(start + seconds, searches) for loop in loops))
    return _seen(loops, time.perf_counter() - start, cpu_seconds(processes) - cpu)


def run_threads(
    loops: Sequence[Loop], processes: list[int], seconds: float, searches: int
) -> dict[str, Any]:
    """Run clients as threads at the same time and return what they saw."""
    ready = threading.Barrier(len(loops) + 1)
    times = [0.0, 0.0]

    def client(loop: Loop) -> None:
        try:
            loop.warm_up()
            ready.wait(300)
            ready.wait(300)
            loop.run(times[0] + seconds, searches)
        except Exception as error:  # an answer must tell of it
            loop.error = error
            ready.abort()

    threads = [threading.Thread(target=client, args=(loop,)) for loop in loops]
    for thread in threads:
        thread.start()
    try:
        ready.wait(300)
        cpu, times[0] = cpu_seconds(processes), time.perf_counter()
        ready.wait(300)
    except threading.BrokenBarrierError:
        cpu = 0.0
    for thread in threads:
        thread.join()
    took, cpu = time.perf_counter() - times[0], cpu_seconds(processes) - cpu
    for loop in loops:
        if loop.error is not None:
            raise loop.error
    return _seen(loops, took, cpu)


def _seen(loops: Sequence[Loop], seconds: float, cpu_s: float) -> dict[str, Any]:
    each_us = [round(1e6 * second) for loop in loops for second in loop.seconds]
    found = {number: ids for loop in loops for number, ids in loop.found.items()}
    return {"seconds": seconds, "cpu_s": cpu_s, "each_us": each_us, "found": found}


# -- lines


def main() -> None:
    """Answer commands until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    name, folder, data = sys.argv[1:]
    try:
        worker = Worker(name, Path(folder), Path(data))
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), file=answers)
        return
    print(json.dumps(worker.about()), file=answers)
    try:
        for line in sys.stdin:
            print(json.dumps(worker.answer(json.loads(line))), file=answers)
    finally:
        worker.close()


if __name__ == "__main__":
    main()
