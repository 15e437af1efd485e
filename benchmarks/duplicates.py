"""Must a candidate that equals the query lead? The demo's collection, asked with what it holds.

Queries are the photographs, the illustrated guides and the texts of the collection themselves, with
no target, no instruction and no judge. The pool `album` has twelve parts of each photograph beside
it, as albums have many pictures of one thing. Each merge policy is put beside itself with the rule
that a hit of the query's modality with a similarity of 1 leads. What the rule could cost is
measured by the topics of the hits: the share of first hits, and of the first five, that are of the
query's topic. The stored result is of the merge before docs/adr/0028 built the rule in.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from bench import Cell, Mesh, Report, options_of, percent, run, running_mesh, search_batches
from PIL import Image

from examples.demo.contents import demo_candidates
from examples.demo.pictures import fetch_pictures
from mmesh import Candidate, Content, Hit, MergePolicy, Modality, Rerank, Search, SearchResult

LIMIT, SHOWN, PARTS = 50, 5, 12
SAME = 1 - 1e-4
"""Similarity from which on two vectors are one: segments may keep half precision."""
Order = Callable[[Candidate, Sequence[Hit]], Sequence[Hit]]


@dataclass(frozen=True, slots=True)
class Row:
    """How queries of one modality were answered in one order."""

    leads: float
    """Share of queries whose own candidate is the first hit."""
    worst: int
    """The lowest place of one."""
    topical_first: float
    topical: float
    """Share of the first hits, and of the first five, that are of the query's topic; the query's
    own candidate is left out."""


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Ask for every candidate with its own content."""
    pictures = fetch_pictures()
    demo = demo_candidates(pictures)
    pools = {"demo": demo, "album": [*demo, *_parts(demo, options.seed)]}
    async with running_mesh(options.shards, reranker="none") as mesh:
        for pool, candidates in pools.items():
            token = await mesh.store(pool, candidates)
            topics = {one.id: str(one.attributes["topic"]) for one in candidates}
            for modality in Modality:
                asked = [one for one in candidates if one.content.modality is modality]
                await _compare(report, mesh, Asked(pool, modality, asked, topics, token))


def _parts(demo: Sequence[Candidate], seed: int) -> list[Candidate]:
    """Return cut parts of each photograph, which have its topic."""
    rng, made = np.random.default_rng(seed), []
    for one in demo:
        if one.content.modality is not Modality.IMAGE:
            continue
        whole = Image.open(io.BytesIO(one.content.images[0].data)).convert("RGB")
        for number in range(PARTS):
            share = rng.uniform(0.4, 0.95)
            width, height = int(whole.width * share), int(whole.height * share)
            left = int(rng.integers(whole.width - width + 1))
            top = int(rng.integers(whole.height - height + 1))
            file = io.BytesIO()
            whole.crop((left, top, left + width, top + height)).save(file, "PNG")
            content = Content.of(file.getvalue())
            made.append(Candidate(f"{one.id}/{number}", content, one.attributes))
    return made


@dataclass(frozen=True, slots=True)
class Asked:
    """Candidates of one modality whose content is asked for."""

    pool: str
    modality: Modality
    candidates: Sequence[Candidate]
    topics: dict[str, str]
    token: str


async def _compare(report: Report, mesh: Mesh, asked: Asked) -> None:
    header = ["policy", "leads", "worst place", "leads by rule", "topic@1", "by rule", "topic@5",
              "by rule"]  # fmt: skip
    what = f"{asked.pool}: the {asked.modality.value} of a candidate"
    report.fact(f"{what}, queries", len(asked.candidates))
    rows: list[list[Cell]] = []
    for policy in MergePolicy:
        found = await _search(mesh, asked, policy)
        plain, ruled = (_row(asked, found, order) for order in (_as_is, _led))
        rows.append([
            policy.value, percent(plain.leads), plain.worst, percent(ruled.leads),
            percent(plain.topical_first), percent(ruled.topical_first),
            percent(plain.topical), percent(ruled.topical),
        ])  # fmt: skip
        if policy is MergePolicy.CALIBRATED:
            _tell_leaders(report, what, asked, found)
    report.table(f"{what}, in %", header, rows)


async def _search(mesh: Mesh, asked: Asked, policy: MergePolicy) -> list[SearchResult]:
    searches = [
        Search(
            asked.pool, one.content, limit=LIMIT, merge=policy, rerank=Rerank(0), token=asked.token
        )
        for one in asked.candidates
    ]
    return await search_batches(mesh.client, searches)


def _as_is(asked: Candidate, hits: Sequence[Hit]) -> Sequence[Hit]:
    return hits


def _led(asked: Candidate, hits: Sequence[Hit]) -> Sequence[Hit]:
    return sorted(hits, key=lambda hit: not _is_same(asked, hit))


def _is_same(asked: Candidate, hit: Hit) -> bool:
    return hit.modality is asked.content.modality and hit.retrieval_score >= SAME


def _row(asked: Asked, found: Sequence[SearchResult], order: Order) -> Row:
    places, first, some = [], [], []
    topics = asked.topics
    for one, result in zip(asked.candidates, found, strict=True):
        ids = [hit.id for hit in order(one, result.hits)]
        places.append(ids.index(one.id) + 1 if one.id in ids else LIMIT + 1)
        first.append(topics[ids[0]] == topics[one.id])
        others = [name for name in ids[:SHOWN] if name != one.id]
        some.append(np.mean([topics[name] == topics[one.id] for name in others]))
    leads = float(np.mean(np.array(places) == 1))
    return Row(leads, max(places), float(np.mean(first)), float(np.mean(some)))


def _tell_leaders(report: Report, what: str, asked: Asked, found: Sequence[SearchResult]) -> None:
    """Print what leads in the place of the query's own candidate."""
    leaders = [
        [one.id, result.hits[0].id, result.hits[0].modality.value, result.hits[0].retrieval_score]
        for one, result in zip(asked.candidates, found, strict=True)
        if not _is_same(one, result.hits[0])
    ]
    report.fact(f"{what}, something else leads", len(leaders))
    if leaders:
        header = ["query", "first hit", "modality", "similarity"]
        report.table(f"{what}, what leads instead", header, leaders[:10])


if __name__ == "__main__":
    sys.exit(run("duplicates", options_of(__doc__), measure))
