"""Dashboards are drawn whole, whatever a Prometheus has."""

from __future__ import annotations

import math

import pytest

from tools.dashboards.boards import ALL
from tools.dashboards.drawing import Line, draw

pytest.importorskip("matplotlib", reason="matplotlib is missing: `pip install --group panels`")


@pytest.mark.parametrize("values", [[0.0, 1.0, 0.5], [0.0] * 3, [math.nan] * 3, []])
def test_a_dashboard_is_drawn_with_every_kind_of_series(tmp_path, values):
    asked = []

    def find(query):
        asked.append(query)
        return [Line({"pod": "index-0"}, range(len(values)), values)] if values else []

    path = tmp_path / "board.png"
    draw(ALL[0], find, 3.0, path)
    assert asked == [query.expr for panel in ALL[0].panels for query in panel.queries]
    assert path.read_bytes().startswith(b"\x89PNG")
