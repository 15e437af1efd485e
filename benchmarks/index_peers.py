"""The index beside the vector stores that one would use instead, on the same rows and queries.

All of them hold the same real embeddings, two attributes and a text, and find 10 hits. Ours answers
over gRPC, from a process of its own (ours-2: from two replicas). For two recalls, each store is
asked with the fastest setting that reaches it; then the stores take turns, so that all see the same
machine. A ratio is the median over the rounds. `make setup-peers` installs the others; what is not
installed is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import embeddings
import faiss
import numpy as np
from bench import SCRATCH, Cell, Report, milliseconds, run
from numpy.typing import NDArray
from peers.contract import LIMIT
from peers.worker import PEERS

ROOT = Path(__file__).parents[1]
OURS = "ours"
RECALLS = (0.95, 0.99)
FILTERED_AT = RECALLS[1]
"""Recall of the settings with which filters are tried."""
CLIENTS = (1, 8)
MANY = CLIENTS[-1]
LEAST = {"pgvector": 1.3, "milvus-lite": 40.0, "qdrant-edge": 0.9}
"""What ours / theirs must be, in queries a second with 8 clients."""
CONDITIONS: dict[str, tuple[str, int]] = {"10 %": ("cat", 3), "1 %": ("sub", 37)}
NEARLY = 1e-6
"""Scores that differ by less are the same: of rows that are equal any may be found."""
ROUNDED = 5e-5
"""So much the scores of unit vectors may differ where rows are kept in half precision."""
LEAST_FILTERED = {"10 %": {NEARLY: 0.98}, "1 %": {NEARLY: 0.9995, ROUNDED: 1.0}}
"""Recall with a filter, by which scores are the same for it: the rows that pass are all scored
where they are few, so that what is missed may only be a matter of rounding."""
SWEEP_QUERIES, SWEEP_S = 2000, 6.0
BUILD_S, ANSWER_S, END_S = 3600.0, 1200.0, 90.0
LINE_BYTES = 1 << 26

Ids = NDArray[np.int64]
Rows = NDArray[np.float32]


# -- data


@dataclass
class Data:
    """Rows, queries and the attribute `sub`, with the score of the 10th hit of each query."""

    folder: Path
    rows: Rows
    queries: Rows
    subs: Ids
    tenth: dict[str, Rows] = field(default_factory=dict)
    allowed: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Search exactly, without and with each filter."""
        values = {"cat": self.subs // 10, "sub": self.subs}
        everything = np.ones(len(self.rows), bool)
        filters = {name: values[one] == value for name, (one, value) in CONDITIONS.items()}
        for name, mask in {"": everything, **filters}.items():
            found = faiss.knn(
                self.queries, self.rows[mask], LIMIT, metric=faiss.METRIC_INNER_PRODUCT
            )
            self.tenth[name], self.allowed[name] = found[0][:, -1], mask

    def recall(
        self, found: Mapping[str, Sequence[int]], condition: str, nearly: float = NEARLY
    ) -> float:
        """Return the share of the 10 nearest that was found, over the queries of `found`."""
        right = 0
        for number, ids in found.items():
            rows = np.unique(np.array(ids, np.int64))
            rows = rows[self.allowed[condition][rows]]
            least = self.tenth[condition][int(number)] - nearly
            right += int((self.rows[rows] @ self.queries[int(number)] >= least).sum())
        return right / (LIMIT * len(found))


def lay_out(options: argparse.Namespace) -> Data:
    """Make the data, and write what the workers read into a folder that is named by it."""
    rows, queries = embeddings.embeddings(options.rows, options.work, options.texts)
    texts = embeddings.texts(options.rows, options.work, options.texts)[: options.rows]
    subs = np.random.default_rng(options.seed).integers(100, size=len(rows))
    digest = hashlib.sha256(rows.tobytes() + subs.tobytes()).hexdigest()[:12]
    folder = options.work / "index-peers" / f"data-{len(rows)}-{digest}"
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        unfinished.mkdir(parents=True)
        arrays: dict[str, NDArray[Any]] = {"rows": rows, "queries": queries, "subs": subs}
        for name, array in arrays.items():
            np.save(unfinished / f"{name}.npy", array)
        (unfinished / "texts.txt").write_text("\n".join(texts), "utf-8")
        unfinished.rename(folder)
    return Data(folder, rows, queries, subs)


# -- stores


class Store:
    """A worker with one store; see `peers/worker.py`."""

    def __init__(self, name: str, python: Path, folder: Path, data: Path) -> None:
        self.name = name
        self.about: dict[str, Any] = {}
        self._command = [str(python), "-m", "peers.worker", name, str(folder), str(data)]
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    @property
    def missing(self) -> str:
        """Why it cannot be compared; empty when it can."""
        return str(self.about.get("missing", ""))

    async def __aenter__(self) -> Self:
        """Start the worker."""
        if not self._has_python():
            self.about = {"missing": "run `make setup-peers`"}
            return self
        paths = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
        with self._folder.with_suffix(".log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=self._folder.parent,
                env=os.environ | {"PYTHONPATH": paths},
                limit=LINE_BYTES,
                start_new_session=True,
            )
        self.about = await self._answer(ANSWER_S)
        return self

    def _has_python(self) -> bool:
        return Path(self._command[0]).exists()

    async def __aexit__(self, *_: object) -> None:
        """End the worker: it closes the store when its input ends."""
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), END_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def ask(self, do: str, *, timeout_s: float = ANSWER_S, **arguments: Any) -> Any:
        """Send a command and return the answer.

        Raises:
            SystemExit: the worker failed, or did not answer in time.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        answer = await self._answer(timeout_s)
        if "error" in answer:
            raise SystemExit(f"{self.name}: {answer['error']}")
        return answer

    async def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
        except TimeoutError:
            raise SystemExit(f"{self.name} does not answer within {timeout_s:.0f} s") from None
        if not line:
            raise SystemExit(f"{self.name} ended; see {self._folder.name}.log in the work folder")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.asynccontextmanager
async def running_stores(
    options: argparse.Namespace, report: Report, data: Path
) -> AsyncIterator[list[Store]]:
    """Start a worker for each store that is installed, and say which is not."""
    async with contextlib.AsyncExitStack() as stack:
        stores = []
        for name in options.stores.split(","):
            python = Path(sys.executable) if name.startswith(OURS) else options.peers_python
            folder = options.work / "index-peers" / f"{name}-{options.rows}"
            if options.rebuild:
                shutil.rmtree(folder, ignore_errors=True)
            store = await stack.enter_async_context(Store(name, python, folder, data))
            if store.missing:
                report.fact(f"left out: {name}", store.missing)
            else:
                stores.append(store)
        yield stores


# -- measurements


@dataclass
class Runs:
    """The timed runs of one store at one setting, a run each round."""

    qps: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    found: dict[str, list[int]] = field(default_factory=dict)

    def add(self, answer: Mapping[str, Any]) -> None:
        """Add what a worker answered."""
        count = len(answer["each_us"])
        self.qps.append(count / answer["seconds"])
        self.cpu_ms.append(1e3 * answer["cpu_s"] / count)
        self.seconds += [each / 1e6 for each in answer["each_us"]]
        self.found |= answer["found"]


Key = tuple[str, float, int, str]
"""Store, recall, clients, filter."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The setting of a store that reaches a recall, and what it gave in the sweep."""

    setting: Any
    recall: float
    queries: int


async def choose(store: Store, data: Data) -> dict[float, Choice]:
    """Return for each recall the first setting that reaches it, or else the last one."""
    measured: dict[str, Choice] = {}
    chosen = {}
    for recall in RECALLS:
        for setting in (await store.ask("settings", recall=recall))["settings"]:
            key = json.dumps(setting)
            if key not in measured:
                measured[key] = await _try(store, setting, data)
            chosen[recall] = measured[key]
            if measured[key].recall >= recall:
                break
    return chosen


async def _try(store: Store, setting: Any, data: Data) -> Choice:
    answer = await store.ask(
        "search", setting=setting, clients=2, seconds=SWEEP_S, queries=SWEEP_QUERIES
    )
    recall = data.recall(answer["found"], "")
    _say(f"{store.name}, {setting}: recall {recall:.4f} of {len(answer['found'])} queries")
    return Choice(setting, recall, len(answer["found"]))


async def take_turns(
    stores: Sequence[Store], chosen: Mapping[str, Mapping[float, Choice]], options: Any
) -> dict[Key, Runs]:
    """Let the stores search in turn, in another order each round."""
    runs: dict[Key, Runs] = defaultdict(Runs)
    plain = [(recall, clients, "") for recall in RECALLS for clients in CLIENTS]
    filtered = [(FILTERED_AT, clients, name) for name in CONDITIONS for clients in CLIENTS]
    for number in range(options.rounds):
        order = [*stores[number % len(stores) :], *stores[: number % len(stores)]]
        for recall, clients, condition in plain + filtered:
            for store in order if number % 2 else order[::-1]:
                answer = await store.ask(
                    "search",
                    setting=chosen[store.name][recall].setting,
                    clients=clients,
                    seconds=options.seconds / 2 if condition else options.seconds,
                    condition=CONDITIONS.get(condition),
                )
                runs[store.name, recall, clients, condition].add(answer)
        _say(f"round {number + 1} of {options.rounds} is done")
    return runs


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


# -- tables


def report_stores(report: Report, stores: Sequence[Store]) -> None:
    """Say what is compared, and how."""
    names = ("version", "about", "durable", "about_clients")
    rows: list[list[Cell]] = [[s.name, *(s.about[name] for name in names)] for s in stores]
    header = ["store", "version", "how it runs", "acknowledged after", "clients are"]
    report.table("what is compared", header, rows)


def report_builds(report: Report, built: Mapping[str, Mapping[str, Any]], n: int) -> None:
    """Show ingest and build: one writer, batches of 100."""
    rows: list[list[Cell]] = [
        [
            name,
            round(n / one["ingest_s"]),
            round(1e6 * one["ingest_cpu_s"] / n),
            round(one["finish_s"], 1),
            round(one["finish_cpu_s"], 1),
            round(n / (one["ingest_s"] + one["finish_s"])),
            round(one["disk_mb"]),
            round(one["rss_mb"]),
            "an earlier run" if one["cached"] else "this run",
        ]
        for name, one in built.items()
    ]
    header = ["store", "ingest, rows/s", "CPU us a row", "index, s", "CPU s"]
    header += ["rows/s, with index", "disk, MB", "memory, MB", "built in"]
    report.table("ingest of batches of 100 by one writer, then the index", header, rows)


def report_recall(
    report: Report,
    recall: float,
    chosen: Mapping[str, Mapping[float, Choice]],
    runs: Mapping[Key, Runs],
    data: Data,
) -> None:
    """Show the searches without a filter, and note the gates."""
    rows: list[list[Cell]] = []
    ours = [name for name in chosen if name.startswith(OURS)]
    for name in chosen:
        one, many = (runs[name, recall, clients, ""] for clients in CLIENTS)
        found = data.recall(one.found | many.found, "")
        cells: list[Cell] = [json.dumps(chosen[name][recall].setting), _share(found)]
        for timed in (one, many):
            cells += [round(float(np.median(timed.qps))), *milliseconds(timed.seconds)]
        ratios = [_ratio_text(runs, one, name, recall) for one in ours]
        rows.append([name, *cells, float(np.median(many.cpu_ms)), *ratios])
        if name == OURS:
            report.gate(f"recall of ours >= {recall}", found, found >= recall)
    header = ["store", "setting", "recall", "1 client: QPS", "ms, median", "ms, p99"]
    header += [
        f"{MANY} clients: QPS",
        "ms, median",
        "ms, p99",
        "CPU ms a query",
        *(f"{one} / it" for one in ours),
    ]
    report.table(f"recall at {LIMIT} >= {recall}", header, rows)
    for name, least in LEAST.items():
        if {name, OURS} <= chosen.keys():
            ratio = float(np.median(_ratios(runs, OURS, name, recall)))
            rule = f"ours / {name}, QPS with {MANY} clients, recall >= {recall}: >= {least}"
            report.gate(rule, ratio, ratio >= least)


def _ratios(runs: Mapping[Key, Runs], ours: str, name: str, recall: float) -> list[float]:
    """Return ours / theirs of each round, in queries a second of many clients."""
    pairs = zip(runs[ours, recall, MANY, ""].qps, runs[name, recall, MANY, ""].qps, strict=True)
    return [mine / theirs for mine, theirs in pairs]


def _ratio_text(runs: Mapping[Key, Runs], ours: str, name: str, recall: float) -> str:
    if name.startswith(OURS):
        return ""
    ratios = _ratios(runs, ours, name, recall)
    return f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _share(recall: float) -> str:
    return f"{recall:.4f}"


def report_filters(
    report: Report, names: Iterable[str], runs: Mapping[Key, Runs], data: Data
) -> None:
    """Show the searches with a filter, and note the gates."""
    rows: list[list[Cell]] = []
    for condition in CONDITIONS:
        for name in names:
            one, many = (runs[name, FILTERED_AT, clients, condition] for clients in CLIENTS)
            found = one.found | many.found
            cells: list[Cell] = [condition, name, _share(data.recall(found, condition))]
            for timed in (one, many):
                cells += [round(float(np.median(timed.qps))), *milliseconds(timed.seconds)]
            rows.append([*cells, float(np.median(many.cpu_ms))])
            if name == OURS:
                gate_filter(report, data, condition, found)
    header = ["filter", "store", "recall", "1 client: QPS", "ms, median", "ms, p99"]
    header += [f"{MANY} clients: QPS", "ms, median", "ms, p99", "CPU ms a query"]
    title = f"with a filter on an attribute, settings of recall >= {FILTERED_AT}"
    report.table(title, header, rows)


def gate_filter(
    report: Report, data: Data, condition: str, found: Mapping[str, Sequence[int]]
) -> None:
    """Note the gates of what ours found with a filter."""
    for nearly, least in LEAST_FILTERED[condition].items():
        recall = data.recall(found, condition, nearly)
        rule = f"recall of ours with a filter that {condition} pass >= {least}"
        report.gate(f"{rule}, scores within {nearly:g} being equal", recall, recall >= least)


# -- run


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Build what is not built, choose settings, take turns, show tables."""
    _say("embedding")
    data = lay_out(options)
    async with running_stores(options, report, data.folder) as stores:
        report_stores(report, stores)
        built, chosen = {}, {}
        for store in stores:
            _say(f"building {store.name}")
            built[store.name] = await store.ask("build", timeout_s=BUILD_S)
        report_builds(report, built, len(data.rows))
        for store in stores:
            chosen[store.name] = await choose(store, data)
            for recall, choice in chosen[store.name].items():
                detail = (await store.ask("detail", setting=choice.setting))["detail"]
                report.fact(f"{store.name} for recall >= {recall}", detail)
        report.fact("load of the machine before the rounds", os.getloadavg()[0])
        runs = await take_turns(stores, chosen, options)
    for recall in RECALLS:
        report_recall(report, recall, chosen, runs, data)
    report_filters(report, chosen, runs, data)
    unreached = [
        f"{name} {_share(one.recall)} for {recall}"
        for name, choices in chosen.items()
        for recall, one in choices.items()
        if one.recall < recall
    ]
    report.fact("recalls that no setting reached", ", ".join(unreached) or "none")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000, help="rows in each store")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of timed searches")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each timed search")
    parser.add_argument("--stores", default=",".join(PEERS), help="which ones, by commas")
    parser.add_argument("--rebuild", action="store_true", help="build what is built already")
    parser.add_argument("--seed", type=int, default=7, help="of the attributes")
    parser.add_argument(
        "--peers-python",
        type=Path,
        default=ROOT / ".venv-peers/bin/python",
        help="the Python that has the others",
    )
    parser.add_argument(
        "--work", type=Path, default=SCRATCH, help="folder for embeddings and stores, kept"
    )
    embeddings.add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run("index_peers", _options(), measure))
