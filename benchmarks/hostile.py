"""Polite clients beside attackers: how long their calls take, and what the attackers hear.

Polite clients search with texts and pictures, and write, one call after another. Each attack runs
in a process of its own, between two whiles of peace. What is compared is the 99th percentile with
that of both: so it matters little what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
from attacks import ATTACKS, COLLECTION
from bench import Mesh, Report, milliseconds, options_of, run, running_mesh
from PIL import Image

from mmesh import Candidate, Content

MOST_TIMES = 3.0
"""The 99th percentile beside an attack over that in peace."""
CANDIDATES = 500
CALM_S = 1.0
"""After an attack."""

Times = dict[str, list[float]]


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Measure in peace, and then beside each attack."""
    async with running_mesh(options.shards, reranker="none") as mesh:
        rows = (Candidate(f"t{n}", Content.of(f"text number {n}")) for n in range(CANDIDATES))
        await mesh.store(COLLECTION, rows)
        polite = Polite(mesh, options.seed)
        await polite.calls_for(2.0)
        table, before = [], await polite.calls_for(options.seconds)
        for name in ATTACKS:
            times, said = await _beside(polite, name, mesh.addresses["gateway"], options.seconds)
            await asyncio.sleep(CALM_S)
            after = await polite.calls_for(options.seconds)
            peace = {kind: before[kind] + after[kind] for kind in before}
            ratio, before = _p99(times) / _p99(peace), after
            table += [_row("peace", peace, 1.0, ""), _row(name, times, ratio, said)]
            rule = f"{name}: p99 at most {MOST_TIMES:g} times that in peace"
            report.gate(rule, ratio, ratio <= MOST_TIMES)
    kinds = [f"{kind} p99 ms" for kind in before]
    header = ["beside", "calls", "p50 ms", "p99 ms", "times", *kinds, "what the attacker hears"]
    report.table("Polite calls", header, table)


async def _beside(polite: Polite, name: str, address: str, seconds: float) -> tuple[Times, str]:
    """Return the times of polite calls beside an attack, and what the attacker was told."""
    attacker = await _begun(name, address, seconds)
    times = await polite.calls_for(seconds)
    said, _ = await attacker.communicate()
    if attacker.returncode:
        raise SystemExit(f"the attack {name!r} ended with code {attacker.returncode}")
    answers = json.loads(said)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in answers["answers"].items())
    return times, f"{counts} (median {1e3 * answers['median_s']:.0f} ms)"


async def _begun(name: str, address: str, seconds: float) -> Process:
    """Start an attack, and return when it has what it sends."""
    attacker = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("attacks.py"))),
        *(name, address, str(seconds)),
        stdout=PIPE,
    )
    assert attacker.stdout is not None
    await attacker.stdout.readline()
    return attacker


class Polite:
    """Clients that do one thing after another, and never the same twice."""

    def __init__(self, mesh: Mesh, seed: int) -> None:
        self._client = mesh.client
        self._number = itertools.count()
        self._random = np.random.default_rng(seed)

    async def calls_for(self, seconds: float) -> Times:
        """Return the seconds of calls by kind."""
        times: Times = defaultdict(list)
        until = time.monotonic() + seconds
        kinds = {
            "text search": self._text_search,
            "picture search": self._picture_search,
            "write": self._write,
        }

        async def client(kind: str, call: Callable[[], Awaitable[object]]) -> None:
            while time.monotonic() < until:
                start = time.perf_counter()
                await call()
                times[kind].append(time.perf_counter() - start)

        await asyncio.gather(*(client(*kind) for kind in kinds.items()))
        return {kind: times[kind] for kind in kinds}

    async def _text_search(self) -> object:
        return await self._client.search(COLLECTION, f"text of {next(self._number)}", timeout=60)

    async def _picture_search(self) -> object:
        return await self._client.search(COLLECTION, Content.of(self._picture()), timeout=60)

    async def _write(self) -> object:
        number = next(self._number)
        one = Candidate(f"w{number % CANDIDATES}", Content.of(f"written {number}"))
        return await self._client.upsert_candidates(COLLECTION, [one], timeout=60)

    def _picture(self) -> bytes:
        coarse = self._random.integers(0, 256, (12, 16, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((640, 480)).save(buffer, "JPEG")
        return buffer.getvalue()


def _p99(times: Times) -> float:
    return float(np.percentile(np.concatenate(list(map(np.asarray, times.values()))), 99))


def _row(name: str, times: Times, ratio: float, said: str) -> list[str | int | float]:
    every = np.concatenate(list(map(np.asarray, times.values())))
    kinds = [milliseconds(seconds)[1] for seconds in times.values()]
    return [name, len(every), *milliseconds(every), ratio, *kinds, said]


def main() -> int:
    """Run the benchmark."""
    parser = options_of(__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each attack and each peace")
    return run("hostile", parser, measure)


if __name__ == "__main__":
    sys.exit(main())
