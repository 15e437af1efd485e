"""Panels drawn with matplotlib, an image for each dashboard: our drawing, not Grafana's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import Any

from tools.dashboards.plan import Board, Panel

COLOURS = 64
"""Of a palette: an image is a third as large as with all of them."""
CAPTION = "Drawn by tools/dashboards from a live mesh: our drawing, not Grafana's."
_WIDTH, _ROW_HEIGHT, _DPI = 16.0, 2.6, 80
_LONGEST_LEGEND, _MOST_LINES = 22, 10


@dataclass(frozen=True, slots=True)
class Line:
    """A series over time: seconds since the start, and values."""

    labels: Mapping[str, str]
    times: Sequence[float]
    values: Sequence[float]


Find = Callable[[str], Sequence[Line]]
"""Returns what a query of a panel has."""


def draw(board: Board, find: Find, seconds: float, path: Path) -> None:
    """Draw so many seconds of a dashboard into a PNG."""
    from matplotlib.figure import Figure

    figure = Figure((_WIDTH, _ROW_HEIGHT * len(board.rows) + 0.9), dpi=_DPI)
    outer = figure.add_gridspec(
        len(board.rows),
        1,
        hspace=0.7,
        left=0.04,
        right=0.99,
        top=1 - 0.95 / figure.get_figheight(),
        bottom=0.75 / figure.get_figheight(),
    )
    for line, row in enumerate(board.rows):
        place = outer[line, 0]
        columns = place.subgridspec(1, len(row.panels), wspace=0.28)
        for number, panel in enumerate(row.panels):
            axes = figure.add_subplot(columns[0, number])
            axes.set_xlim(0, seconds)
            _draw_panel(axes, panel, find)
        top = place.get_position(figure).y1 + 0.3 / figure.get_figheight()
        figure.text(0.01, top, row.title, size=10, color="0.3")
    figure.text(0.01, 1 - 0.3 / figure.get_figheight(), board.title, size=13, weight="bold")
    figure.text(0.01, 0.08 / figure.get_figheight(), CAPTION, size=8, color="0.4")
    path.write_bytes(_png(figure))


def _draw_panel(axes: Any, panel: Panel, find: Find) -> None:
    lines = [
        (query.legend or panel.title, line)
        for query in panel.queries
        for line in find(query.expr)
        if any(map(isfinite, line.values))
    ]
    for legend, line in lines[:_MOST_LINES]:
        text = _filled(legend, line.labels)[:_LONGEST_LEGEND]
        axes.plot(line.times, line.values, linewidth=1.1, label=text or panel.title)
    if not lines:
        axes.text(0.5, 0.5, "nothing happened", ha="center", va="center", color="0.6",
                  transform=axes.transAxes, size=8)  # fmt: skip
    if panel.limit is not None:
        axes.axhline(panel.limit, color="tab:red", linewidth=0.8, linestyle="--")
    axes.set_title(panel.title, size=9, loc="left")
    axes.set_ylim(bottom=0, top=None if _has_values(lines) or panel.limit else 1)
    axes.yaxis.set_major_formatter(_formatter(panel.unit))
    axes.tick_params(labelsize=7)
    axes.grid(visible=True, color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(-0.03, -0.1), frameon=False,
                    ncols=4, borderpad=0, handlelength=1.2, columnspacing=1)  # fmt: skip


def _has_values(lines: Sequence[tuple[str, Line]]) -> bool:
    return any(value > 0 for _, line in lines for value in line.values)


def _filled(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend).strip()


def _formatter(unit: str) -> Any:
    from matplotlib.ticker import EngFormatter, PercentFormatter

    if unit == "percentunit":
        return PercentFormatter(1.0, decimals=None)
    units = {"s": "s", "bytes": "B", "Bps": "B/s", "ops": "/s", "reqps": "/s"}
    return EngFormatter(units.get(unit, ""), sep=" " if unit in units else "")


def _png(figure: Any) -> bytes:
    """Return an image with few colours."""
    from PIL import Image

    drawn, small = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(small, "PNG", optimize=True)
    return small.getvalue()
