"""What the gateway adds to the encoder and the index, and where the time of a search goes.

One client, one call at a time. Searches through the gateway, direct calls of the encoder and of
each shard, and batches of searches take turns in one run, so that all see the same machine. No
query is sent to the gateway twice: its memory of embeddings plays no part.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from bench import (
    BATCH,
    Cell,
    Mesh,
    Report,
    milliseconds,
    options_of,
    percent,
    run,
    running_mesh,
    search_batches,
)

from mmesh import Candidate, Content, Modality, Rerank, Search, SearchResult, wire
from mmesh.api.collection.v1 import collection_pb2
from mmesh.api.encoder.v1 import encoder_pb2
from mmesh.api.encoder.v1.encoder_pb2_grpc import EncoderServiceStub
from mmesh.api.index.v1 import index_pb2
from mmesh.api.index.v1.index_pb2_grpc import IndexServiceStub
from mmesh.models.encoders.lite.artefacts import DATA, VOCABULARY
from mmesh.wire.transport import open_channel

COLLECTION = "overhead"
LIMIT = 10
ROUND = 32
"""Single searches between two batches."""
WARM_UP = 30
PLACES = ("beside", "under", "inside", "in front of", "without", "made of", "drawn with")


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Let the kinds of calls take turns and compare their times."""
    texts = _texts(options.seed)
    pool = [next(texts) for _ in range(options.candidates)]
    async with running_mesh(options.shards) as mesh:
        rows = (Candidate(f"t{i:05}", Content.of(text)) for i, text in enumerate(pool))
        token = await mesh.store(COLLECTION, rows)
        calls = Calls(mesh, options.shards)
        await mesh.client.search(COLLECTION, next(texts), token=token, rerank=Rerank(0))
        await _warm_up(calls, texts)
        times = await _take_turns(calls, texts, options.searches)
        await calls.close()
    _report_paths(report, times, options.shards)
    _report_stages(report, times.results, times.seconds["gateway"])
    _report_batches(report, times)


def _texts(seed: int) -> Any:
    """Yield texts of about eight words, none twice."""
    draw = random.Random(seed)
    names = [str(name) for name in np.load(DATA / VOCABULARY)["names"]]
    seen: set[str] = set()
    while True:
        text = f"{draw.choice(names)} {draw.choice(PLACES)} {draw.choice(names)}"
        text += f" {draw.choice(PLACES)} {draw.choice(names)}"
        if text not in seen:
            seen.add(text)
            yield text


# -- calls


@dataclass
class Times:
    """Seconds of each kind of call, in the order of the rounds, and the answers."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    results: list[SearchResult] = field(default_factory=list)


class Calls:
    """The calls that are compared, each as the gateway makes it."""

    def __init__(self, mesh: Mesh, shards: int) -> None:
        self._client = mesh.client
        self._channels = [open_channel(a) for a in (mesh.addresses["encoder"], *mesh.shards)]
        self._encoder = EncoderServiceStub(self._channels[0])
        self._shards = [IndexServiceStub(channel) for channel in self._channels[1:]]
        assert len(self._shards) == shards

    async def close(self) -> None:
        """Close what was opened."""
        for channel in self._channels:
            await channel.close()

    async def search(self, text: str) -> SearchResult:
        """Search through the gateway."""
        return await self._client.search(COLLECTION, text, limit=LIMIT, rerank=Rerank(0))

    async def batch(self, texts: list[str]) -> list[SearchResult]:
        """Search through the gateway with many queries in one call."""
        searches = [
            Search(COLLECTION, Content.of(text), limit=LIMIT, rerank=Rerank(0)) for text in texts
        ]
        return await search_batches(self._client, searches)

    async def encode(self, text: str) -> encoder_pb2.EncodeResponse:
        """Encode one query."""
        request = encoder_pb2.EncodeRequest(
            inputs=[encoder_pb2.Input(content=wire.content_to_pb(Content.of(text)))],
            role=encoder_pb2.ROLE_QUERY,
            priority=encoder_pb2.PRIORITY_INTERACTIVE,
            on_problem=encoder_pb2.ON_PROBLEM_SKIP,
        )
        return await self._encoder.Encode(request, timeout=30.0)

    async def shard(self, number: int, encoded: encoder_pb2.EncodeResponse) -> None:
        """Search one shard."""
        request = index_pb2.SearchRequest(
            collection=COLLECTION,
            queries=encoded.vectors,
            model_fingerprint=encoded.model_fingerprint,
            modalities=[wire.modality_to_pb(modality) for modality in Modality],
            limit=LIMIT,
            consistency=collection_pb2.CONSISTENCY_EVENTUAL,
        )
        await self._shards[number].Search(request, timeout=30.0)

    async def parts(self, text: str, times: Times) -> None:
        """Encode, then search each shard alone."""
        encoded = await _timed("encoder", self.encode(text), times)
        for number in range(len(self._shards)):
            await _timed(f"index-{number}", self.shard(number, encoded), times)


async def _timed(kind: str, call: Awaitable[Any], times: Times) -> Any:
    start = time.perf_counter()
    answer = await call
    times.seconds[kind].append(time.perf_counter() - start)
    return answer


async def _warm_up(calls: Calls, texts: Any) -> None:
    for _ in range(WARM_UP):
        await calls.search(next(texts))
        await calls.parts(next(texts), Times())
    await calls.batch([next(texts) for _ in range(BATCH)])


async def _take_turns(calls: Calls, texts: Any, searches: int) -> Times:
    """Alternate which kind of call comes first, and put a batch into every round."""
    times = Times()
    for number in range(searches):
        text = next(texts)
        if number % 2:
            await calls.parts(text, times)
        times.results.append(await _timed("gateway", calls.search(text), times))
        if not number % 2:
            await calls.parts(text, times)
        if number % ROUND == ROUND // 2:
            await _timed("batch", calls.batch([next(texts) for _ in range(BATCH)]), times)
    return times


# -- tables


def _report_paths(report: Report, times: Times, shards: int) -> None:
    seconds = times.seconds
    slowest = np.max([seconds[f"index-{number}"] for number in range(shards)], axis=0)
    parts = np.array(seconds["encoder"]) + slowest
    kinds = {
        "Search, through the gateway": seconds["gateway"],
        "Encode, direct": seconds["encoder"],
        **{f"Search, index shard {n} direct": seconds[f"index-{n}"] for n in range(shards)},
        "Encode + the slower shard": parts,
    }
    rows: list[list[Cell]] = [[n, len(s), *milliseconds(s)] for n, s in kinds.items()]
    report.table("one client, one call at a time", ["call", "n", "ms, median", "ms, p99"], rows)
    whole, made_of = float(np.median(seconds["gateway"])), float(np.median(parts))
    report.fact("added by the gateway, ms at the median", 1e3 * (whole - made_of))
    report.fact("gateway / its parts, at the median", whole / made_of)


def _report_stages(report: Report, results: list[SearchResult], seen: list[float]) -> None:
    receipts = [result.receipt for result in results]
    totals = np.array([receipt.total_seconds for receipt in receipts])
    stages: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for receipt in receipts:
        for stage in receipt.stages:
            stages[stage.name].append((stage.seconds, stage.service_seconds))
    rows = [_stage_row(name, np.array(pairs), totals) for name, pairs in stages.items()]
    report.table(
        "stages of a search, from its receipt",
        ["stage", "n", "ms, median", "ms, p99", "share %", "in the service, ms"],
        rows,
    )
    sums = np.array([sum(stage.seconds for stage in receipt.stages) for receipt in receipts])
    off = float(np.abs(sums / totals - 1).max())
    report.gate("sum of the stages is the receipt's total within 10 %", off, off <= 0.1)
    share = float(np.median(totals / np.array(seen)))
    report.fact("receipt's total / time that the client saw, at the median", share)
    report.gate("receipt's total <= time that the client saw", share, share <= 1)
    cached = sum(receipt.embedding_cached for receipt in receipts)
    report.gate("searches with a remembered embedding = 0", cached, cached == 0)
    degraded = sum(bool(result.degradations) for result in results)
    report.gate("degraded searches = 0", degraded, degraded == 0)


def _stage_row(name: str, pairs: np.ndarray[Any, Any], totals: np.ndarray[Any, Any]) -> list[Cell]:
    median, p99 = milliseconds(pairs[:, 0])
    share = percent(float(pairs[:, 0].sum() / totals.sum()))
    return [name, len(pairs), median, p99, share, milliseconds(pairs[:, 1])[0]]


def _report_batches(report: Report, times: Times) -> None:
    single, each = times.seconds["gateway"], np.array(times.seconds["batch"]) / BATCH
    rows: list[list[Cell]] = [["Search", len(single), *milliseconds(single)]]
    rows += [[f"SearchBatch({BATCH}) / {BATCH}", len(each), *milliseconds(each)]]
    report.table("time for one query", ["call", "n", "ms, median", "ms, p99"], rows)
    ratio = float(np.median(each) / np.median(single))
    report.fact("query in a batch / query alone, at the median", ratio)
    report.gate("a query in a batch takes no longer than one alone", ratio, ratio <= 1)


if __name__ == "__main__":
    parser = options_of(__doc__)
    parser.add_argument("--candidates", type=int, default=4000, help="texts to search")
    parser.add_argument("--searches", type=int, default=640, help="single searches to time")
    sys.exit(run("overhead", parser, measure))
