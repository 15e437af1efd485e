"""Recall of the embedded model, from text to picture, through a whole mesh.

Two sets that `lite` was not trained on: clip art with titles of its own, and emoji whose concept
and whose vendor are new. A hit is a picture with the same name among the first k. What the mesh
finds is put beside what was measured without it when the model was built.
"""

from __future__ import annotations

import argparse
import sys

from bench import (
    DEPTHS,
    Cell,
    Mesh,
    PictureSet,
    Report,
    first_ranks,
    interval,
    options_of,
    percent,
    picture_sets,
    recalls,
    run,
    running_mesh,
    search_batches,
    search_singly,
    signed,
)

from mmesh import Content, Modality, Rerank, Search
from mmesh.models.encoders.lite.artefacts import read_manifest

GATES = {"openclipart_test": 0.32, "twitter_unseen": 0.45}
"""Least recall at 10 through the mesh without reranking."""
LOSS = 0.005
"""Most recall at 10 that the way through the mesh may lose or win."""


async def measure(options: argparse.Namespace, report: Report) -> None:
    """Fill a collection with each set and ask for every picture by its name."""
    sets = picture_sets(options.work)
    async with running_mesh(options.shards) as mesh:
        rows = [
            row for chosen in sets.values() for row in await _rows(options, report, mesh, chosen)
        ]
    header = ["set", "searched", "n", "R@1", "R@5", "R@10", "gain R@10", "95 %"]
    report.table("text -> picture, recall in %", header, rows)


async def _rows(
    options: argparse.Namespace, report: Report, mesh: Mesh, chosen: PictureSet
) -> list[list[Cell]]:
    token = await mesh.store(chosen.name, chosen.candidates)
    first = [_search(chosen, text, token, Rerank(0)) for text in chosen.queries]
    ranks = first_ranks(await search_batches(mesh.client, first), chosen.relevant)
    usual = [_search(chosen, text, token, None) for text in chosen.queries]
    results = await search_singly(mesh.client, usual)
    judged = first_ranks(results, chosen.relevant)
    degraded = sum(bool(result.degradations) for result in results)
    report.gate(f"{chosen.name} searches that were not fully judged = 0", degraded, degraded == 0)
    _check(report, chosen.name, recalls(ranks)[2], recalls(judged)[2])
    gains = (judged <= DEPTHS[-1]).astype(float) - (ranks <= DEPTHS[-1])
    low, high = interval(gains, options.seed)
    gain: list[Cell] = [signed(float(gains.mean())), f"{signed(low)} .. {signed(high)}"]
    return [
        [chosen.name, "first stage alone", len(ranks), *map(percent, recalls(ranks)), "", ""],
        [chosen.name, "as the mesh answers", len(ranks), *map(percent, recalls(judged)), *gain],
    ]


def _check(report: Report, name: str, alone: float, answered: float) -> None:
    report.gate(f"{name} first-stage R@10 >= {GATES[name]}", alone, alone >= GATES[name])
    lost = "R@10 as the mesh answers loses at most 0.01"
    report.gate(f"{name} {lost}", answered - alone, answered >= alone - 0.01)
    built = read_manifest()["recall_percent"][name]["text_to_image@10"] / 100
    rule = f"{name} R@10 of the first stage is that of the model alone, {built:.3f}, within {LOSS}"
    report.gate(rule, alone, abs(alone - built) <= LOSS)


def _search(chosen: PictureSet, text: str, token: str, rerank: Rerank | None) -> Search:
    return Search(chosen.name, Content.of(text), target=Modality.IMAGE, token=token, rerank=rerank)


if __name__ == "__main__":
    sys.exit(run("recall_lite", options_of(__doc__), measure))
