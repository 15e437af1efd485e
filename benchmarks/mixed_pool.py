"""How to merge the lists of two modalities: pictures and texts in one collection, target any.

Ten pools to choose a merge on, eight to report on (`mixed_pools.py`). In each, some queries seek a
picture and some a text. Every policy is put beside the ideal, for which the target is given: what
share of its recall is kept? Pictures and texts may both be fair answers, and only one counts, so no
policy can reach the ideal for both kinds.

All pools are searched exactly, here, and merged by the gateway's own code; two of them are searched
through a mesh as well, which must answer the same.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from bench import Cell, Mesh, Report, options_of, percent, run, running_mesh, search_batches
from mixed_pools import FIT, IMAGE, REPORT, TEXT, Kind, Pool, pools
from mixed_vectors import Found, Scores, Vectors

from mmesh import Candidate, Content, MergePolicy, Modality, Rerank, Search, SearchResult
from mmesh.training.lite_model.features import image_bytes
from services.gateway.interfaces import Scored
from services.gateway.search.merge import RANK_DISCOUNT, merge

LIMIT = 10
DEPTHS = (1, 10)
MEAN, WORSE = 0.95, 0.93
"""What a pool should keep of the ideal R@10 over both kinds: on the mean, and of the worse kind."""
LOSS, MOST_LOST = 0.01, 1
"""Most R@10 on the mean that the default should lose to raw scores, and in how many pools it does
on either side: a list of tags is as good a name of many pictures as of a caption."""
LEAST = 0.9
"""Least R@10 that is kept over all pools of a side."""
SAME, NEAR = 0.98, 0.01
"""Share of hits that the mesh must have in common with what is found here, and the largest
difference of recalls: many drawings are there twice, and which one is tenth is left to chance."""
NAMES = {FIT: "fit", REPORT: "report"}
INSTRUCTIONS = {IMAGE: "Find an image that matches this.", TEXT: "Find a text that matches this."}
Kept = np.ndarray
"""Shares of the ideal recall (kind, depth): of queries that seek a picture, then a text."""
Values = Callable[[Mapping[Modality, Scores]], Mapping[Modality, Scores]]
"""What hits are merged by, from the scores of the lists."""


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Search and merge every pool, choose nothing: what was chosen is in the gateway."""
    chosen = pools(options.work, options.queries)
    vectors = Vectors(chosen, options.work / "mixed", options.threads)
    report.fact("texts and pictures encoded", list(vectors.count))
    found = [[vectors.search(pool, kind) for kind in pool.kinds] for pool in chosen]
    _describe(report, vectors, chosen)
    kept: dict[int, dict[str, list[Kept]]] = {FIT: {}, REPORT: {}}
    for side in (FIT, REPORT):
        mine = [n for n, pool in enumerate(chosen) if pool.side == side]
        for policy in MergePolicy:
            kept[side][policy.value] = [
                _kept(found[n], partial(_merged, vectors, chosen[n], policy)) for n in mine
            ]
        _tables(report, side, [chosen[n] for n in mine], [found[n] for n in mine], kept[side])
        _gates(report, side, [chosen[n] for n in mine], kept[side])
    fit = [n for n, pool in enumerate(chosen) if pool.side == FIT]
    _candidates(report, vectors, [chosen[n] for n in fit], [found[n] for n in fit])
    await _through_a_mesh(options, report, vectors, chosen)


# -- merging


def _merged(vectors: Vectors, pool: Pool, policy: MergePolicy, found: Found) -> list[list[str]]:
    """Return the first ten ids of each query, as the gateway merges the lists."""
    calibration = vectors.calibration(pool.model, pool.query)
    return [
        [entry.hit.id for entry in merge(lists, policy, calibration, LIMIT, pool.query)]
        for lists in _lists(found)
    ]


def _lists(found: Found) -> Iterable[dict[Modality, list[Scored]]]:
    count = len(found.lists[TEXT].scores)
    for query in range(count):
        yield {
            kind: [
                Scored(_id(kind, place), kind, score, {})
                for place, score in zip(
                    one.places[query].tolist(), one.scores[query].tolist(), strict=True
                )
            ]
            for kind, one in found.lists.items()
        }


def _id(kind: Modality, place: int) -> str:
    return f"{kind.value}:{place:05}"


def _kept(kinds: Sequence[Found], merged: Callable[[Found], list[list[str]]]) -> Kept:
    """Return what merging keeps of the recall of a search in the right modality alone."""
    return np.array([_recalls_of(found, merged(found)) / _ideal(found) for found in kinds])


def _recalls_of(found: Found, merged: Sequence[Sequence[str]]) -> Scores:
    wanted = found.lists[found.seeks]
    ranks = [
        _rank(ids, {_id(found.seeks, place) for place in places[right].tolist()})
        for ids, places, right in zip(merged, wanted.places, wanted.right, strict=True)
    ]
    return np.array([np.mean(np.array(ranks) <= depth) for depth in DEPTHS])


def _rank(ids: Sequence[str], right: set[str]) -> float:
    return next((rank for rank, one in enumerate(ids, start=1) if one in right), math.inf)


def _ideal(found: Found) -> Scores:
    right = found.lists[found.seeks].right
    shares = [right[:, :depth].any(axis=1).mean() for depth in DEPTHS]
    return np.maximum(shares, 1e-9)


# -- tables


def _describe(report: Report, vectors: Vectors, chosen: Sequence[Pool]) -> None:
    header = ["pool", "side", "model", "pictures", "texts", "seek a picture", "a text"]
    rows: list[list[Cell]] = [
        [
            pool.name,
            NAMES[pool.side],
            pool.model,
            len(pool.candidates[IMAGE]),
            len(pool.candidates[TEXT]),
            *(len(kind.queries) for kind in pool.kinds),
        ]
        for pool in chosen
    ]
    report.table("pools and their queries", header, rows)
    for model, query in dict.fromkeys((pool.model, pool.query) for pool in chosen):
        one = vectors.calibration(model, query)
        usual = {kind.value: round(value, 3) for kind, value in one.usual.items()}
        report.fact(f"usual of {model}, asked with {query.value}", usual | {"spread": one.spread})


def _tables(
    report: Report,
    side: int,
    chosen: Sequence[Pool],
    found: Sequence[Sequence[Found]],
    kept: Mapping[str, Sequence[Kept]],
) -> None:
    names = list(kept)
    for place, depth in ((1, 10), (0, 1)):
        header = ["pool", "ideal", *(f"{name}: pic/text/mean" for name in names)]
        rows: list[list[Cell]] = []
        for n, pool in enumerate(chosen):
            ideal = " / ".join(percent(_ideal(one)[place]) for one in found[n])
            cells = [_three(kept[name][n][:, place]) for name in names]
            rows.append([f"{pool.name} ({pool.model})", ideal, *cells])
        means = [np.mean([one[:, place] for one in kept[name]], axis=0) for name in names]
        rows.append(["mean", "", *map(_three, means)])
        report.table(f"{NAMES[side]} pools: kept of the ideal R@{depth}, in %", header, rows)


def _three(values: Scores) -> str:
    return " / ".join(percent(float(value)) for value in (*values, values.mean()))


def _gates(
    report: Report, side: int, chosen: Sequence[Pool], kept: Mapping[str, Sequence[Kept]]
) -> None:
    """Say where the goal is missed, and hold on to what was reached."""
    name, default = NAMES[side], MergePolicy.CALIBRATED.value
    means = {policy: np.array([one[:, 1].mean() for one in each]) for policy, each in kept.items()}
    losses = (means[MergePolicy.SCORE.value] - means[default]).tolist()
    lost = {
        f"{pool.name} ({pool.model})": percent(loss)
        for pool, loss in zip(chosen, losses, strict=True)
        if loss > LOSS
    }
    report.fact(f"{name}: pools whose R@10 is over a point below raw scores", lost)
    report.gate(f"{name}: such pools are at most {MOST_LOST}", len(lost), len(lost) <= MOST_LOST)
    overall = {policy: float(values.mean()) for policy, values in means.items()}
    others = max(value for policy, value in overall.items() if policy != default)
    best = overall[default] - others
    report.gate(f"{name}: R@10 over all pools above that of other policies", best, best > 0)
    report.gate(f"{name}: R@10 over all pools", overall[default], overall[default] >= LEAST)
    for policy, each in kept.items():
        reached = [one[:, 1].mean() >= MEAN and one[:, 1].min() >= WORSE for one in each]
        fact = (
            f"{name}: pools in which {policy} keeps {MEAN:.0%}, and {WORSE:.0%} of the worse kind"
        )
        report.fact(fact, f"{sum(reached)} of {len(reached)}")


# -- what else was tried, on the pools to choose on


def _candidates(
    report: Report,
    vectors: Vectors,
    chosen: Sequence[Pool],
    found: Sequence[Sequence[Found]],
) -> None:
    """Show the neighbours of what was chosen, and what it took the place of."""
    ways: dict[str, Callable[[Pool], Values]] = {
        "collection's own scales (ADR 0008)": lambda pool: _by_tails(vectors.tails(pool))
    }
    ways["raw scores"] = partial(_by_gap, vectors, 0.0, 0.0)
    for share in (0.5, 0.8, 1.0, 1.2):
        for discount in (0.0, 0.15, RANK_DISCOUNT, 0.45):
            ways[f"{share} of the model's gap, {discount} ln(rank)"] = partial(
                _by_gap, vectors, share, discount
            )
    for share in (0.2, 0.5):
        ways[f"model's gap, drawn by {share} to the collection's"] = partial(
            _between, vectors, share
        )
    rows: list[list[Cell]] = []
    for name, way in ways.items():
        each = [
            _kept(kinds, partial(_sorted, way(pool)))
            for pool, kinds in zip(chosen, found, strict=True)
        ]
        rows.append([name, *_summary(each)])
    best = [_best(kinds) for kinds in found]
    rows.append(["best gap of each pool, in hindsight", *_summary(best)])
    header = ["way", "R@10 mean", "worse kind", "R@1 mean", "worse kind", "reach the goal"]
    report.table("fit pools: what else was weighed, kept in %", header, rows)


def _summary(each: Sequence[Kept]) -> list[Cell]:
    kept = np.array(each)
    means, worse = kept.mean(axis=1), kept.min(axis=1)
    reached = (means[:, 1] >= MEAN) & (worse[:, 1] >= WORSE)
    shares = (means[:, 1], worse[:, 1], means[:, 0], worse[:, 0])
    return [*(percent(float(one.mean())) for one in shares), f"{reached.sum()} of {len(each)}"]


def _sorted(values: Values, found: Found) -> list[list[str]]:
    """Return the first ten ids of each query by what hits are worth."""
    kinds = list(found.lists)
    worth = values({kind: found.lists[kind].scores for kind in kinds})
    order = np.argsort(-np.concatenate([worth[kind] for kind in kinds], axis=1), kind="stable")
    ids = np.concatenate(
        [
            [[_id(kind, place) for place in row] for row in found.lists[kind].places.tolist()]
            for kind in kinds
        ],
        axis=1,
    )
    return [row.tolist() for row in np.take_along_axis(ids, order[:, :LIMIT], axis=1)]


def _by_tails(tails: Mapping[Modality, Scores]) -> Values:
    return lambda scores: {
        kind: _discounted((rows - tails[kind].mean()) / tails[kind].std(), RANK_DISCOUNT)
        for kind, rows in scores.items()
    }


def _by_gap(vectors: Vectors, share: float, discount: float, pool: Pool) -> Values:
    one = vectors.calibration(pool.model, pool.query)
    return lambda scores: {
        kind: _discounted((rows - share * one.usual[kind]) / one.spread, discount)
        for kind, rows in scores.items()
    }


def _between(vectors: Vectors, share: float, pool: Pool) -> Values:
    """Shrink the gap that the collection shows towards that of the model."""
    one, tails = vectors.calibration(pool.model, pool.query), vectors.tails(pool)
    usual = {
        kind: share * tails[kind][:, 0].mean() + (1 - share) * one.usual[kind] for kind in tails
    }
    return lambda scores: {
        kind: _discounted((rows - usual[kind]) / one.spread, RANK_DISCOUNT)
        for kind, rows in scores.items()
    }


def _discounted(values: Scores, discount: float) -> Scores:
    return values - discount * np.log(np.arange(1, values.shape[1] + 1))


def _best(kinds: Sequence[Found]) -> Kept:
    """Return what the best constant gap keeps: no such merge can keep more."""
    tried = [
        _kept(kinds, partial(_sorted, partial(_shifted, gap)))
        for gap in np.arange(-0.3, 0.31, 0.03)
    ]
    return max(tried, key=lambda kept: float(kept[:, 1].mean()))


def _shifted(gap: float, scores: Mapping[Modality, Scores]) -> Mapping[Modality, Scores]:
    moved = {TEXT: scores[TEXT], IMAGE: scores[IMAGE] + gap}
    return {kind: _discounted(rows, 0.04) for kind, rows in moved.items()}


# -- through a mesh


async def _through_a_mesh(
    options: argparse.Namespace, report: Report, vectors: Vectors, chosen: Sequence[Pool]
) -> None:
    """Ask the first pool of each side of a mesh; it must find what was found here."""
    first = [next(pool for pool in chosen if pool.side == side) for side in (FIT, REPORT)]
    async with running_mesh(options.shards, reranker="none") as mesh:
        for pool in first:
            name = NAMES[pool.side]
            token = await mesh.store(name, list(_candidates_of(pool)))
            for kind in pool.kinds:
                await _confirm(report, mesh, vectors, pool, kind, token)


def _candidates_of(pool: Pool) -> Iterable[Candidate]:
    for modality, contents in pool.candidates.items():
        for place, content in enumerate(contents):
            yield Candidate(_id(modality, place), _content(content))


def _content(content: str | Path) -> Content:
    return Content.of(image_bytes(content) if isinstance(content, Path) else content)


async def _confirm(
    report: Report, mesh: Mesh, vectors: Vectors, pool: Pool, kind: Kind, token: str
) -> None:
    ask = partial(_search, mesh, NAMES[pool.side], kind, token)
    ideal = await ask(target=kind.seeks)
    named = await ask(instruction=INSTRUCTIONS[kind.seeks])
    title = f"{pool.name}, seeks {kind.seeks.value}"
    same = _same(map(_ids, ideal), map(_ids, named))
    report.gate(f"{title}: same hits by instruction as by target", same, same == 1)
    found = vectors.search(pool, kind)
    answers = {
        policy: await ask(merge=policy) for policy in (MergePolicy.SCORE, MergePolicy.CALIBRATED)
    }
    for policy, results in answers.items():
        here, there = _merged(vectors, pool, policy, found), [_ids(one) for one in results]
        common = np.mean([len({*a} & {*b}) / len(a) for a, b in zip(here, there, strict=True)])
        rule = f"{title}: the mesh finds by {policy.value} what is found here"
        report.gate(rule, float(common), bool(common >= SAME))
        far = float(abs(_recalls_of(found, here) - _recalls_of(found, there)).max())
        report.gate(f"{rule}, recalls within a point", far, far <= NEAR)
    results = [*ideal, *named, *(one for each in answers.values() for one in each)]
    degraded = sum(bool(result.degradations) for result in results)
    report.gate(f"{title}: degraded searches = 0", degraded, not degraded)


def _same(some: Iterable[Sequence[str]], others: Iterable[Sequence[str]]) -> float:
    return float(np.mean([list(a) == list(b) for a, b in zip(some, others, strict=True)]))


def _ids(result: SearchResult) -> list[str]:
    return [hit.id for hit in result.hits]


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
        Search(collection, _content(query), instruction, target, LIMIT,
               merge=merge, rerank=Rerank(0), token=token)
        for query in kind.queries
    ]  # fmt: skip
    return await search_batches(mesh.client, searches)


if __name__ == "__main__":
    parser = options_of(__doc__)
    parser.add_argument("--queries", type=int, default=300, help="queries of each kind, at most")
    parser.add_argument("--threads", type=int, default=2)
    sys.exit(run("mixed_pool", parser, measure))
