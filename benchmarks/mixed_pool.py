"""How to merge the lists of two modalities: pictures and texts in one collection, target any.

Some queries seek a picture (titles of clip art, none of which is a text of the collection), others
seek a text (tags of an emoji, whose label is a text). Every merge policy is put beside the ideal,
for which the target is given. Tags may find a fair picture and titles a fair text, which counts as
wrong, so no policy can reach the ideal for both.

The gateway's calibration is fitted with titles of pictures that `lite` was trained on. In the pool
`new-labels` none of them is among the texts; in `all-labels` many are.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from bench import (
    Cell,
    Mesh,
    PictureSet,
    Report,
    first_ranks,
    options_of,
    percent,
    picture_sets,
    recalls,
    run,
    running_mesh,
    search_batches,
)
from debian import programs

from mmesh import Candidate, Content, MergePolicy, Modality, Rerank, Search, SearchResult
from mmesh.training.lite_model.pictures import emoji_names, normalised

IDEAL = "ideal: target given"
LIMIT = 10
LEAST_TAGS = 2


@dataclass(frozen=True, slots=True)
class Kind:
    """Queries that seek one modality, with the right answers to each."""

    name: str
    modality: Modality
    instruction: str
    """Names the modality, so that the gateway searches no other."""
    queries: list[str]
    relevant: list[frozenset[str]]


@dataclass(frozen=True, slots=True)
class Pool:
    """A collection and both kinds of queries for it."""

    name: str
    candidates: list[Candidate]
    kinds: list[Kind]


@dataclass(frozen=True, slots=True)
class Row:
    """What one way of asking found for one kind of query."""

    recalls: list[float]
    wrong_first: float
    pictures: float
    """Share of pictures among the hits."""


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Ask every query of both pools in every way."""
    async with running_mesh(options.shards, reranker="none") as mesh:
        for pool in (build(options, "new-labels"), build(options, "all-labels")):
            counts = Counter(c.content.modality.value for c in pool.candidates)
            report.fact(f"candidates of {pool.name}", dict(counts))
            token = await mesh.store(pool.name, pool.candidates)
            found = {kind.name: await _ask(report, mesh, pool, kind, token) for kind in pool.kinds}
            _compare(report, pool, found)


# -- the collection and its queries


def build(options: argparse.Namespace, name: str) -> Pool:
    """Return everything that can be found, and both kinds of queries."""
    clipart, emoji = picture_sets(options.work).values()
    labels, tags = _emoji(options.work)
    if name == "new-labels":
        new = {f"label:{c.attributes['source']}".replace("twitter/", "") for c in emoji.candidates}
        labels, tags = ({k: v for k, v in one.items() if k in new} for one in (labels, tags))
    packages = programs(options.work)[: options.distractors]
    texts = labels | {f"deb:{package.name}": package.synopsis for package in packages}
    candidates = [Candidate(key, Content.of(text)) for key, text in texts.items()]
    candidates += [*clipart.prefixed().candidates, *emoji.prefixed().candidates]
    known = {normalised(text) for text in texts.values()}
    kinds = [_picture_kind(clipart.prefixed(), known), _text_kind(labels, tags)]
    return Pool(name, candidates, [_some(kind, options.queries, options.seed) for kind in kinds])


def _emoji(work: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the labels and the tags of all emoji by id; few tags say too little."""
    names = emoji_names(work / "packages")
    labels = {f"label:{concept}": label for concept, (label, _) in names.items()}
    tags = {
        f"label:{concept}": ", ".join(tags)
        for concept, (label, tags) in names.items()
        if len(set(tags) - {label}) >= LEAST_TAGS
    }
    return labels, tags


def _picture_kind(chosen: PictureSet, known: set[str]) -> Kind:
    pairs = zip(chosen.queries, chosen.relevant, strict=True)
    kept = [(query, right) for query, right in pairs if normalised(query) not in known]
    instruction = "Find an image that matches the title."
    return Kind("seeks a picture", Modality.IMAGE, instruction, *map(list, zip(*kept, strict=True)))


def _text_kind(labels: dict[str, str], tags: dict[str, str]) -> Kind:
    same: dict[str, set[str]] = {}
    for name, label in labels.items():
        same.setdefault(normalised(label), set()).add(name)
    relevant = [frozenset(same[normalised(labels[name])]) for name in tags]
    instruction = "Find a text that has these tags."
    return Kind("seeks a text", Modality.TEXT, instruction, list(tags.values()), relevant)


def _some(kind: Kind, count: int, seed: int) -> Kind:
    chosen = np.random.default_rng(seed).permutation(len(kind.queries))[:count]
    queries = [kind.queries[i] for i in chosen]
    relevant = [kind.relevant[i] for i in chosen]
    return Kind(kind.name, kind.modality, kind.instruction, queries, relevant)


# -- searches


async def _ask(report: Report, mesh: Mesh, pool: Pool, kind: Kind, token: str) -> dict[str, Row]:
    """Return a row for each way of asking, the ideal first; check the instruction's."""
    ask = partial(_search, mesh, pool.name, kind, token)
    ways = {IDEAL: await ask(target=kind.modality)}
    ways["instruction"] = await ask(instruction=kind.instruction)
    ways |= {policy.value: await ask(merge=policy) for policy in MergePolicy}
    title = f"{pool.name}, {kind.name}"
    same = _same(ways[IDEAL], ways["instruction"])
    report.gate(f"{title}: same hits by instruction as by target", same, same == 1)
    same = _same(ways[MergePolicy.RRF.value], ways[MergePolicy.INTERLEAVE.value])
    report.fact(f"{title}: share of searches that rrf and interleave answer alike", same)
    degraded = sum(bool(result.degradations) for results in ways.values() for result in results)
    report.gate(f"{title}: degraded searches = 0", degraded, not degraded)
    return {way: _row(kind, results) for way, results in ways.items()}


def _same(some: Sequence[SearchResult], others: Sequence[SearchResult]) -> float:
    return float(np.mean([_ids(a) == _ids(b) for a, b in zip(some, others, strict=True)]))


async def _search(
    mesh: Mesh,
    collection: str,
    kind: Kind,
    token: str,
    *,
    instruction: str = "",
    target: Modality | None = None,
    merge: MergePolicy | None = None,
) -> list[SearchResult]:
    searches = [
        Search(collection, Content.of(query), instruction, target, LIMIT,
               merge=merge, rerank=Rerank(0), token=token)
        for query in kind.queries
    ]  # fmt: skip
    return await search_batches(mesh.client, searches)


def _ids(result: SearchResult) -> list[str]:
    return [hit.id for hit in result.hits]


def _row(kind: Kind, results: Sequence[SearchResult]) -> Row:
    first = [result.hits[0].modality is not kind.modality for result in results]
    pictures = [hit.modality is Modality.IMAGE for result in results for hit in result.hits]
    ranks = first_ranks(results, kind.relevant)
    return Row(recalls(ranks), float(np.mean(first)), float(np.mean(pictures)))


# -- tables


def _compare(report: Report, pool: Pool, found: dict[str, dict[str, Row]]) -> None:
    header = ["way", "R@1", "R@5", "R@10", "of ideal R@1", "R@10", "wrong first", "pictures in 10"]
    for kind, rows in found.items():
        ideal, *_ = rows.values()
        cells = [_cells(way, row, ideal) for way, row in rows.items()]
        report.table(f"{pool.name}: a query {kind}, in %", header, cells)
    kept = {policy.value: _kept(found, policy.value) for policy in MergePolicy}
    header = ["policy", "mean R@10", "worse R@10", "mean R@1", "worse R@1"]
    table = [[name, *map(percent, values)] for name, values in kept.items()]
    report.table(f"{pool.name}: kept of the ideal over both kinds, in %", header, table)
    best = max(kept, key=lambda name: (round(kept[name][0], 2), kept[name][2]))
    report.fact(f"{pool.name}: most of R@10 kept on the mean, then of R@1", best)


def _cells(way: str, row: Row, ideal: Row) -> list[Cell]:
    kept = [row.recalls[depth] / ideal.recalls[depth] for depth in (0, 2)]
    shares = [*row.recalls, *kept, row.wrong_first, row.pictures]
    return [way, *map(percent, shares)]


def _kept(found: dict[str, dict[str, Row]], way: str) -> list[float]:
    """Return mean and least share of the ideal's recall at 10, then at 1."""
    shares = []
    for rows in found.values():
        ideal, *_ = rows.values()
        shares.append([rows[way].recalls[depth] / ideal.recalls[depth] for depth in (2, 0)])
    at_10, at_1 = np.array(shares).T
    return [float(f(values)) for values in (at_10, at_1) for f in (np.mean, np.min)]


if __name__ == "__main__":
    parser = options_of(__doc__)
    parser.add_argument("--distractors", type=int, default=2000, help="synopses among the texts")
    parser.add_argument("--queries", type=int, default=1000, help="queries of each kind, at most")
    sys.exit(run("mixed_pool", parser, measure))
