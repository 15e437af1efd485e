"""Tables on the terminal; rich, slow to import, is loaded by the first that is printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mmesh.content import Content
    from mmesh.search import Hit, SearchResult

PREVIEW = 90


@cache
def console() -> Console:
    """Return the terminal on stdout."""
    from rich.console import Console

    return Console(highlight=False)


@cache
def errors() -> Console:
    """Return the terminal on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> Table:
    """Return a table of plain texts."""
    from rich.table import Table
    from rich.text import Text

    made = Table(*columns, title=title or None, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def hits_table(result: SearchResult, title: str = "") -> Table:
    """Return the hits as a table, with a preview where content was sent along."""
    rows = [_hit_row(hit) for hit in result.hits]
    return table(["#", "score", "judge", "modality", "id", "content"], rows, title)


def _hit_row(hit: Hit) -> list[str]:
    judged = "" if hit.rerank_score is None else f"{hit.rerank_score:.3f}"
    preview = content_preview(hit.content) if hit.content else ""
    return [
        str(hit.rank),
        f"{hit.retrieval_score:.3f}",
        judged,
        hit.modality.value,
        hit.id,
        preview,
    ]


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
