"""The files of a report: `report.html` and `report.md`, beside the run's JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmesh.aio import AsyncClient
from mmesh.evaluation.report.page import markdown_page, page_of
from mmesh.evaluation.report.worst import collect
from mmesh.evaluation.results import Results
from mmesh.evaluation.scoring import Poor

PAGE, MARKDOWN = "report.html", "report.md"


async def write_report(
    client: AsyncClient, results: Results, poor: Sequence[Poor], folder: Path
) -> None:
    """Write both; the contents of what the worst queries found come from the mesh."""
    worst = await collect(client, results.collection, poor)
    for name, text in ((PAGE, page_of(results, worst)), (MARKDOWN, markdown_page(results))):
        fresh = folder / f"{name}.new"
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, folder / name)
