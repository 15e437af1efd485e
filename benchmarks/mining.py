"""How fast hard negatives are mined beside the same searches, and whether their files are the same.

Rows are random unit vectors with a text each, so that filling the collection costs no encoding.
What is mined is a snapshot of it. Four of five queries have their answer at rank 10, the others
anywhere, which has to be looked up. Each way asks the same queries with as many calls in flight,
several times in turn; what counts is the median of what each round says. Then `mmesh negatives`
writes its file several times: with nothing else to do, and while candidates of the collection come,
change and go.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import grpc
import numpy as np
from bench import PATIENCE_S, Mesh, Report, options_of, run, running_mesh

from mmesh import Candidate, Content, MergePolicy, Rerank, Search, SearchResult
from mmesh.api.index.v1 import index_pb2, index_pb2_grpc
from mmesh.candidates import Embedded
from mmesh.collections import Collection
from mmesh.content import Modality
from mmesh.errors import MmeshError
from mmesh.evaluation.datasets.dataset import Query
from mmesh.evaluation.options import Effort
from mmesh.training.mining.drawing import TOP, Rules
from mmesh.training.mining.files import read_negatives
from mmesh.training.mining.live import Mined, Miner
from mmesh.training.mining.questions import Question
from mmesh.vectors import FloatMatrix

EFFORT = Effort()
LIVE, THEN = "mined", "mined-then"
WRITTEN_AT_A_TIME = 250


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Fill a collection, make a snapshot, then search and mine in turn, and compare files."""
    async with running_mesh(options.shards, reranker="none") as mesh:
        live = await _filled(mesh, options)
        began = time.monotonic()
        then = await mesh.client.copy_collection(LIVE, THEN, timeout=PATIENCE_S)
        report.fact("seconds of the copy", time.monotonic() - began)
        for name in (LIVE, THEN):
            await _compacted(mesh, name)
        asked = [_question(number, f"r{number}") for number in range(options.queries)]
        found = await _search(mesh, then, asked)  # the mesh remembers the embeddings
        questions = [
            _question(number, result.hits[9].id if number % 5 else f"r{number}")
            for number, result in enumerate(found)
        ]
        await _compare_rates(mesh, live, then, questions, options, report)
        with tempfile.TemporaryDirectory(prefix="mmesh-mining-") as folder:
            await _compare_files(mesh, live, questions, Path(folder), options, report)


# -- rates


async def _compare_rates(
    mesh: Mesh,
    live: Collection,
    then: Collection,
    questions: list[Question],
    options: argparse.Namespace,
    report: Report,
) -> None:
    ways = {
        "search, snapshot": lambda: _search(mesh, then, questions),
        "mine, snapshot": lambda: _mine(mesh, then, questions, options.seed),
        "search, collection": lambda: _search(mesh, live, questions),
        "mine, collection": lambda: _mine(mesh, live, questions, options.seed),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds):
        for name, way in list(ways.items())[:: 1 if number % 2 else -1]:
            began = time.monotonic()
            await way()
            seconds[name].append(time.monotonic() - began)
    rates = {name: options.queries / float(np.median(some)) for name, some in seconds.items()}
    report.table(
        "queries a second",
        ["way", "queries / s", "rounds"],
        [[name, rate, options.rounds] for name, rate in rates.items()],
    )
    for what in ("snapshot", "collection"):
        pairs = zip(seconds[f"search, {what}"], seconds[f"mine, {what}"], strict=True)
        shares = [searched / mined for searched, mined in pairs]
        report.fact(f"mining a {what}: rate beside SearchBatch, by round", _short(shares))
        share = float(np.median(shares))
        report.gate(f"mining a {what}: rate beside SearchBatch >= 0.8", share, share >= 0.8)


def _short(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


async def _mine(mesh: Mesh, collection: Collection, questions: list[Question], seed: int) -> None:
    miner = Miner(mesh.client, collection, Rules(), seed, EFFORT)
    answers = [one async for one in miner.mine(iter(questions))]
    assert all(isinstance(one, Mined) for one in answers)


async def _search(
    mesh: Mesh, collection: Collection, questions: list[Question]
) -> list[SearchResult]:
    free = asyncio.Semaphore(EFFORT.in_flight)

    async def call(some: list[Question]) -> list[SearchResult | MmeshError]:
        async with free:
            return await mesh.client.search_batch(
                [
                    Search(
                        collection.name,
                        Content.of(one.query.text),
                        limit=TOP,
                        merge=MergePolicy.SCORE,
                        rerank=Rerank(0),
                        token=collection.token,
                        require_all_shards=True,
                    )
                    for one in some
                ],
                timeout=PATIENCE_S,
            )

    rest = iter(questions)
    calls = []
    while some := list(islice(rest, EFFORT.batch)):
        calls.append(call(some))
    return [one for some in await asyncio.gather(*calls) for one in some]  # type: ignore[misc]


# -- files


@dataclass
class Writes:
    """What the load generator reached."""

    count: int = 0
    seconds: float = 0.0


async def _compare_files(
    mesh: Mesh,
    live: Collection,
    questions: list[Question],
    folder: Path,
    options: argparse.Namespace,
    report: Report,
) -> None:
    queries = folder / "queries.jsonl"
    queries.write_text("".join(json.dumps(_row(one)) + "\n" for one in questions), "utf-8")
    quiet = [await _file(mesh, queries, options.seed) for _ in range(2)]
    async with _writing(mesh, live, options) as writes:
        busy = [await _file(mesh, queries, options.seed) for _ in range(2)]
    rate = writes.count / writes.seconds
    report.fact("writes a second meanwhile", rate)
    report.fact("writes a second that were wanted", options.writes)
    report.fact("writes to candidates of the collection meanwhile", writes.count)
    rows = [
        ["nothing", 1, *quiet[0]], ["nothing", 2, *quiet[1]],
        ["writes", 3, *busy[0]], ["writes", 4, *busy[1]],
    ]  # fmt: skip
    report.table("files", ["meanwhile", "run", "SHA-256", "seconds of the command"], rows)
    same = len({digest for digest, _ in quiet})
    report.gate("different files of two runs = 1", same, same == 1)
    same = len({digest for digest, _ in quiet + busy})
    report.gate("different files, two of them under writes = 1", same, same == 1)
    share = rate / options.writes
    report.gate("writes meanwhile: share of the rate that is wanted >= 0.95", share, share >= 0.95)
    then = list(read_negatives(_out(queries)))
    await _file(mesh, queries, options.seed, snapshot=False)
    differ = sum(a != b for a, b in zip(then, read_negatives(_out(queries)), strict=False))
    report.gate("queries with other negatives in the collection itself by now", differ, differ > 0)


def _out(queries: Path) -> Path:
    return queries.with_name("negatives.parquet")


async def _file(
    mesh: Mesh, queries: Path, seed: int, *, snapshot: bool = True
) -> tuple[str, float]:
    """Run the command; return a digest of its file, and the seconds that it took."""
    out = _out(queries)
    chosen = ["--snapshot", THEN] if snapshot else []
    command = ["negatives", LIVE, *chosen, "--queries", str(queries), "--out", str(out)]
    began = time.monotonic()
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from mmesh.cli import main; main()", *command,
        "--seed", str(seed), "--target-address", mesh.addresses["gateway"],
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    if await done.wait():
        raise SystemExit("the command failed")
    taken = time.monotonic() - began
    return hashlib.sha256(out.read_bytes()).hexdigest()[:16], taken


@asynccontextmanager
async def _writing(
    mesh: Mesh, live: Collection, options: argparse.Namespace
) -> AsyncIterator[Writes]:
    """Write to the collection meanwhile, as many candidates a second as are wanted or can be."""
    writes, began = Writes(), time.monotonic()
    task = asyncio.create_task(_write(mesh, live, options, writes))
    try:
        yield writes
    finally:
        writes.seconds = time.monotonic() - began
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _write(mesh: Mesh, live: Collection, options: argparse.Namespace, writes: Writes) -> None:
    """Replace, add and delete candidates in turn; what was replaced is found elsewhere."""
    random, began = np.random.default_rng(options.seed + 1), time.monotonic()
    for number in range(sys.maxsize):
        ids = [f"r{n}" for n in random.integers(options.rows * 11 // 10, size=WRITTEN_AT_A_TIME)]
        ids = list(dict.fromkeys(ids))
        if number % 4 == 3:
            await mesh.client.delete_candidates(LIVE, ids, timeout=PATIENCE_S)
        else:
            await mesh.client.upsert_candidates(
                LIVE,
                [Candidate(one, Content.of(f"new {one} {number}")) for one in ids],
                vectors=_unit(random, len(ids), live.dim),
                model_fingerprint=live.model_fingerprint,
                timeout=PATIENCE_S,
            )
        writes.count += len(ids)
        ahead = writes.count / options.writes - (time.monotonic() - began)
        await asyncio.sleep(max(0.0, ahead))


# -- the collection and the queries


async def _filled(mesh: Mesh, options: argparse.Namespace) -> Collection:
    client = mesh.client
    made = await client.create_collection(LIVE)
    rows = _rows(options, made.dim)
    while some := list(islice(rows, 10_000)):
        report = await client.ingest(
            LIVE, some, model_fingerprint=made.model_fingerprint, batch_size=256
        )
        assert not report.rejected, report.rejected[0]
    return await client.get_collection(LIVE)


def _rows(options: argparse.Namespace, dim: int) -> Iterator[Embedded]:
    random = np.random.default_rng(options.seed)
    for number in range(options.rows):
        text = Content.of(f"row {number}")
        yield Embedded(Candidate(f"r{number}", text), _unit(random, 1, dim)[0])


def _unit(random: np.random.Generator, count: int, dim: int) -> FloatMatrix:
    rows = random.standard_normal((count, dim)).astype(np.float32)
    unit: FloatMatrix = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


async def _compacted(mesh: Mesh, collection: str) -> None:
    """Let every shard hold one segment, so that no build runs beside what is measured."""
    for address in mesh.shards:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = index_pb2_grpc.IndexServiceStub(channel)
            request = index_pb2.CompactRequest(collection=collection)
            await stub.Compact(request, timeout=PATIENCE_S)


def _question(number: int, answer: str) -> Question:
    query = Query(f"q{number}", f"what is thing number {number} about", None, f"{number}")
    return Question(query, (answer,), Modality.TEXT)


def _row(question: Question) -> dict[str, object]:
    text = question.query.text
    return {
        "id": question.query.id,
        "text": text,
        "target": "text",
        "relevant": list(question.positives),
    }


def main() -> int:
    """Run the benchmark."""
    parser = options_of(__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--writes", type=int, default=1000, help="wanted, a second")
    return run("mining", parser, measure)


if __name__ == "__main__":
    sys.exit(main())
