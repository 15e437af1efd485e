"""A bar chart of the headlines as inline SVG: bars with intervals, ticks for published figures."""

from __future__ import annotations

from html import escape

from mmesh.evaluation.bootstrap import Estimate
from mmesh.evaluation.report.published import published_for
from mmesh.evaluation.results import Results

_LEFT, _WIDTH, _BAR, _GAP = 170, 520, 13, 12


def chart_of(results: Results) -> str:
    """Return the chart: a group for each task, a bar for each pool."""
    names = list(dict.fromkeys(task.task for task in results.tasks))
    ways = results.ways
    step = _BAR * len(ways) + _GAP
    height = step * len(names) + 24
    parts = [_grid(height)]
    for number, name in enumerate(names):
        top = number * step + 6
        label = f'<text x="{_LEFT - 8}" y="{top + _BAR * len(ways) / 2 + 4}" class="label">'
        parts.append(f"{label}{escape(name)}</text>")
        parts += [
            _bar(results, name, way, top + place * _BAR, place) for place, way in enumerate(ways)
        ]
    keys = "".join(f'<span class="key way{n}"></span>{escape(w)} ' for n, w in enumerate(ways))
    note = '<span class="key tick"></span>published' if published_for(results.dataset) else ""
    view = f"0 0 {_LEFT + _WIDTH + 70} {height}"
    role = 'role="img" aria-label="Headline by task and pool, in percent"'
    return f'<p class="keys">{keys}{note}</p><svg viewBox="{view}" {role}>{"".join(parts)}</svg>'


def _grid(height: int) -> str:
    lines = []
    for part in (0, 25, 50, 75, 100):
        x = _x(part / 100)
        lines.append(f'<line x1="{x}" x2="{x}" y1="0" y2="{height - 18}" class="grid"/>')
        lines.append(f'<text x="{x}" y="{height - 4}" class="axis">{part}</text>')
    return "".join(lines)


def _bar(results: Results, name: str, way: str, top: float, place: int) -> str:
    task = results.of(name, way)
    if task is None:
        return ""
    estimate = task.figures[task.headline]
    title = f"{name}, {way}: {100 * estimate.value:.1f} %"
    bar = f'<rect x="{_LEFT}" y="{top}" width="{_x(estimate.value) - _LEFT:.1f}" '
    bar += f'height="{_BAR - 2}" class="way{place}"><title>{escape(title)}</title></rect>'
    return bar + _whisker(estimate, top) + _ticks(results.dataset, name, way, top)


def _whisker(estimate: Estimate, top: float) -> str:
    low, high, y = _x(estimate.low), _x(estimate.high), top + (_BAR - 2) / 2
    value = (
        f'<text x="{high + 5:.1f}" y="{y + 3.5}" class="value">{100 * estimate.value:.1f}</text>'
    )
    return f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" class="whisker"/>{value}'


def _ticks(dataset: str, name: str, way: str, top: float) -> str:
    ticks = []
    for one in published_for(dataset):
        if one.way == way and name in one.tasks:
            x, title = _x(one.tasks[name] / 100), f"{one.title}: {one.tasks[name]:.1f} %"
            ticks.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + _BAR - 2}" class="tick">'
                f"<title>{escape(title)}</title></line>"
            )
    return "".join(ticks)


def _x(part: float) -> float:
    return _LEFT + _WIDTH * part
