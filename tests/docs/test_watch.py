"""The commands of the page on watching run, and its pictures are those of the dashboards."""

from pathlib import Path

import pytest

from tools.dashboards.boards import ALL

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "watch.md"
LARGEST_BYTES = 150_000


def test_every_command_of_the_page_runs(blocks_of, run_block, mesh, monkeypatch):
    for command in ("TOP", "LOGS"):
        monkeypatch.setenv(f"MMESH_{command}_DATA", str(mesh.settings.data))
    monkeypatch.setenv("MMESH_TOP_INTERVAL", "0.1")
    printed = [run_block(*block) for block in blocks_of(PAGE)]
    assert len(printed) == 3
    assert "coverage" in printed[0]
    assert " INFO " in printed[2]


@pytest.mark.parametrize("board", ALL, ids=lambda board: board.name)
def test_every_dashboard_has_a_small_picture_on_the_page(board):
    picture = ROOT / "docs" / "images" / f"dashboard-{board.name}.png"
    assert f"../images/{picture.name}" in PAGE.read_text()
    assert 1000 < picture.stat().st_size < LARGEST_BYTES
