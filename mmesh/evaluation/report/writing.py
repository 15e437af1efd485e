"""The files of a report: `report.html` and `report.md`, beside the run's JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmesh.aio import AsyncClient
from mmesh.evaluation.report.page import markdown_page, page_of
from mmesh.evaluation.report.worst import collect
from mmesh.evaluation.results import Results
from mmesh.evaluation.scoring import Poor
from mmesh.evaluation.whole_files import written_whole

PAGE, MARKDOWN = "report.html", "report.md"


async def write_report(
    client: AsyncClient, results: Results, poor: Sequence[Poor], folder: Path
) -> None:
    """Write both; the contents of what the worst queries found come from the mesh.

    Raises:
        OSError: a file cannot be written; the one before it is kept.
    """
    worst = await collect(client, results.collection, poor)
    for name, text in ((PAGE, page_of(results, worst)), (MARKDOWN, markdown_page(results))):
        with written_whole(folder / name) as file:
            file.write(text)
