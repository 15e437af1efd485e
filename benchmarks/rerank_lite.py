"""What the embedded judge gains from text to text, and what it costs, through a whole mesh.

Candidates are descriptions of Debian programs, without their names; queries are the one-line
synopses. One description is right for each, so other fair answers count as wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from bench import (
    Cell,
    Mesh,
    Report,
    Values,
    first_ranks,
    interval,
    milliseconds,
    options_of,
    percent,
    recalls,
    reciprocal,
    run,
    running_mesh,
    search_batches,
    search_singly,
    signed,
)
from debian import Package, digest_of, programs, with_usable_synopsis

from mmesh import Candidate, Content, Modality, Rerank, RerankOutcome, Search, SearchResult

COLLECTION = "deb"
DEPTH = 20
GAIN = 0.06
"""Least gain in recall at 1."""


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Ask with and without the judge, then time it on candidates that it sees once and again."""
    pool = programs(options.work)[: options.candidates]
    asked = with_usable_synopsis(pool)[: options.queries]
    report.fact("candidates", len(pool))
    report.fact("queries", len(asked))
    report.fact("set", digest_of(pool))
    async with running_mesh(options.shards) as mesh:
        candidates = [Candidate(p.name, Content.of(p.description)) for p in pool]
        token = await mesh.store(COLLECTION, candidates)
        plain = await search_batches(mesh.client, [_search(p, token, 0) for p in asked])
        await _time(report, mesh, asked, plain, token)
        judged = await search_singly(mesh.client, [_search(p, token, DEPTH) for p in asked])
    _compare(options, report, asked, plain, judged)


def _search(package: Package, token: str, depth: int) -> Search:
    query = Content.of(package.synopsis)
    return Search(
        COLLECTION, query, target=Modality.TEXT, limit=DEPTH, rerank=Rerank(depth), token=token
    )


# -- quality


def _compare(
    options: argparse.Namespace,
    report: Report,
    asked: Sequence[Package],
    plain: Sequence[SearchResult],
    judged: Sequence[SearchResult],
) -> None:
    relevant = [{package.name} for package in asked]
    before, after = first_ranks(plain, relevant), first_ranks(judged, relevant)
    report.table(
        f"synopsis -> description, n = {len(asked)}, in %",
        ["rerank", "R@1", "R@5", "R@10", "MRR@10", f"R@{DEPTH}"],
        [_row("off", before), _row(f"{DEPTH}", after)],
    )
    gains = (after <= 1).astype(float) - (before <= 1)
    rows = [_gain("R@1", gains, options.seed)]
    rows += [_gain("MRR@10", reciprocal(after) - reciprocal(before), options.seed)]
    report.table("gain in points, paired bootstrap", ["figure", "gain", "95 %"], rows)
    report.gate(f"gain in R@1 >= {GAIN}", float(gains.mean()), bool(gains.mean() >= GAIN))
    whole = sum(result.receipt.rerank_outcome is RerankOutcome.FULL for result in judged)
    report.gate(
        "share of searches that were fully judged = 1", whole / len(judged), whole == len(judged)
    )


def _row(name: str, ranks: Values) -> list[str]:
    figures = [*recalls(ranks), float(reciprocal(ranks).mean()), float(np.isfinite(ranks).mean())]
    return [name, *map(percent, figures)]


def _gain(name: str, differences: Values, seed: int) -> list[str]:
    low, high = interval(differences, seed)
    return [name, signed(float(differences.mean())), f"{signed(low)} .. {signed(high)}"]


# -- cost


async def _time(
    report: Report,
    mesh: Mesh,
    asked: Sequence[Package],
    plain: Sequence[SearchResult],
    token: str,
) -> None:
    """Judge lists that share no candidate, each twice: at first nothing is remembered."""
    cold: list[float] = []
    warm: list[float] = []
    shares: list[float] = []
    for number in _disjoint(plain, report.options["timed"]):
        for seconds in (cold, warm):
            (result,) = await search_singly(
                mesh.client, [_search(asked[number], token, DEPTH)], in_flight=1
            )
            seconds.append(_judging_s(result) / DEPTH)
        shares.append(_stage_s(result) / result.receipt.total_seconds)
    header = ["candidates", "lists", "ms, median", "ms, p99"]
    rows: list[list[Cell]] = [["first seen", len(cold), *milliseconds(cold)]]
    rows += [["remembered", len(warm), *milliseconds(warm)]]
    report.table(f"time in the judge per candidate, {DEPTH} at a time", header, rows)
    report.fact("remembered / first seen", float(np.median(np.divide(warm, cold))))
    report.fact("rerank stage's share of a search, remembered", float(np.median(shares)))


def _disjoint(plain: Sequence[SearchResult], count: int) -> list[int]:
    """Return numbers of searches no two of which found the same candidate."""
    chosen: list[int] = []
    seen: set[str] = set()
    for number, result in enumerate(plain):
        ids = {hit.id for hit in result.hits}
        if not ids & seen and len(ids) == DEPTH and len(chosen) < count:
            chosen.append(number)
            seen |= ids
    return chosen


def _judging_s(result: SearchResult) -> float:
    return sum(s.service_seconds for s in result.receipt.stages if s.name == "rerank")


def _stage_s(result: SearchResult) -> float:
    return sum(s.seconds for s in result.receipt.stages if s.name == "rerank")


if __name__ == "__main__":
    parser = options_of(__doc__)
    parser.add_argument("--candidates", type=int, default=3000, help="descriptions to choose from")
    parser.add_argument("--queries", type=int, default=1000, help="synopses to ask with")
    parser.add_argument("--timed", type=int, default=40, help="lists to time")
    sys.exit(run("rerank_lite", parser, measure))
