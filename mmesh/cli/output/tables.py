"""Tables on the terminal; rich, slow to import, is loaded by the first that is printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from mmesh.cli.output.terminal import open_console, shown, shown_in_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mmesh.content import Content
    from mmesh.search import SearchResult

PREVIEW = 90


@cache
def console() -> Console:
    """Return the terminal on stdout."""
    return open_console()


@cache
def errors() -> Console:
    """Return the terminal on stderr."""
    return open_console(stderr=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> Table:
    """Return a table of plain texts; what has no room goes on below, so that ids can be copied."""
    from rich.table import Table
    from rich.text import Text

    heading = Text(shown(title), "table.title") if title else None
    made = Table(title=heading, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*(Text(shown_in_line(str(cell))) for cell in row))
    return made


def hits_table(result: SearchResult, title: str = "") -> Table:
    """Return the hits as a table, with a preview where content was sent along."""
    rows = [
        [
            hit.rank,
            _number(hit.score),
            _number(hit.retrieval_score),
            _number(hit.rerank_score),
            hit.modality.value,
            hit.id,
            content_preview(hit.content) if hit.content else "",
        ]
        for hit in result.hits
    ]
    columns = ["#", "score", "similarity", "judge", "modality", "id", "content"]
    return table(columns, rows, title)


def explanation_table(result: SearchResult) -> Table:
    """Return for each hit the numbers of all stages, for a search with `explain`."""
    rows = [
        [
            hit.rank, _number(hit.score), _number(hit.retrieval_score), why.list_rank,
            _number(why.standard_score), _number(-why.rank_discount), _number(why.merge_score),
            why.merge_rank, _number(hit.rerank_score), _number(why.judge_weight),
            _number(why.mixed_score), hit.modality.value, hit.id,
        ]
        for hit in result.hits
        if (why := hit.explanation) is not None
    ]  # fmt: skip
    columns = [
        "#", "score", "similarity", "in list", "standard", "discount", "merged", "place", "judge",
        "weight", "mixed", "modality", "id",
    ]  # fmt: skip
    return table(columns, rows)


def explanation_notes(result: SearchResult) -> list[str]:
    """Return the lines below a table of explanations: how its columns follow from each other."""
    lines = [
        "similarity: cosine of query and candidate; in list: place by it within the modality",
        "standard: similarity in the units of the calibration; discount: taken off for `in list`",
        "merged: what the merge orders by; place: that order, which the judge may change",
    ]
    if any(hit.rerank_score is not None for hit in result.hits):
        lines.append(
            "mixed: both stages standardised, by the judge's weight; judged hits change places by "
            "it among those that the judge can compare"
        )
    if any(hit.explanation and hit.explanation.equals_query for hit in result.hits):
        lines.append("a picture that equals the query's leads, with the merged score of the next")
    return [*lines, "score: `merged` of the place, so it falls from hit to hit"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value + 0.0:.3f}"


def content_preview(content: Content) -> str:
    """Return one short line about content."""
    words = " ".join(content.text.split())
    cut = words if len(words) <= PREVIEW else words[: PREVIEW - 1] + "…"
    pictures = len(content.images)
    return (f"[{pictures} picture{'s' * (pictures > 1)}] " if pictures else "") + cut


def footnotes(result: SearchResult) -> list[str]:
    """Return the lines below a table of hits: what was searched, skipped, and how long it took."""
    receipt = result.receipt
    searched = ", ".join(modality.value for modality in receipt.searched)
    lines = [
        f"{receipt.query_modality.value} → {searched} ({receipt.target_source}); merge "
        f"{receipt.merge.value}; rerank {receipt.rerank_outcome.value}; "
        f"{receipt.total_seconds * 1000:.0f} ms; shards "
        f"{result.coverage.shards_answered}/{result.coverage.shards_total}"
    ]
    return lines + [f"degraded: {d.reason}: {d.message}" for d in result.degradations]
