"""What a run was, in lines for people."""

from __future__ import annotations

from mmesh.evaluation.report.published import published_for
from mmesh.evaluation.results import Results


def facts_of(results: Results) -> list[str]:
    """Return how the figures came about, and what they may not be compared with."""
    options = results.options
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in results.candidates.items() if count)
    judged = f"the first {options['rerank']} by {results.judge}" if options["rerank"] else "nothing"
    merge = options["merge"] or "the mesh's default"
    lines = [
        f"Pool: {sum(results.candidates.values()):,} candidates ({kinds}), in the collection "
        f"{results.collection}.",
        f"Encoder: {results.encoder}. Judged: {judged}. Merge: {merge}.",
        f"Target: {_TARGETS[options['target']]}",
        *results.notes,
        "Intervals: 95 % percentile bootstrap over queries; averages over tasks, each resampled.",
    ]
    planned = sum(one.target_sources.get("instruction", 0) for one in results.tasks)
    if planned and "union" in results.ways:
        lines.append(
            f"The gateway took the modality of {planned:,} searches from their instruction: an "
            "easier protocol than UniIR's, whose union is one list; `--target each` is that list."
        )
    for one in published_for(results.dataset):
        lines.append(f"{one.title}: {one.source}.")
    return lines


_TARGETS = {
    "any": "any; the mesh decides, by the instruction if that names a modality.",
    "wanted": "the modality that the query is after, or its task.",
    "each": "every modality by itself, merged by raw inner product, as one list over all vectors.",
}
