"""Tables keep what people copy from them: ids, names, commands."""

from __future__ import annotations

import io

import pytest

from mmesh.cli.output.tables import table
from mmesh.cli.output.terminal import open_console

ID = "2019/holiday-in-norway/" + "IMG_20190802_123451-" * 8 + ".png"
ROW = [ID, "image", "words " * 15]


@pytest.fixture
def printed(monkeypatch):
    """Print a table and return its lines without the heading."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def printed(width: int | None) -> list[str]:
        made = open_console()
        made.file = io.StringIO()
        if width:
            made.width = width
        made.print(table(["id", "modality", "content"], [ROW]))
        return made.file.getvalue().splitlines()[1:]

    return printed


def test_a_narrow_terminal_has_long_ids_whole_on_several_lines(printed):
    for width in (80, 120):
        lines = printed(width)
        assert max(map(len, lines)) <= width
        first_column = [line.split(" ", 1)[0] for line in lines]
        assert "".join(first_column) == ID
        assert sum(line.count("words") for line in lines) == 15


def test_a_pipe_has_a_row_on_a_line(printed):
    [line] = printed(None)
    assert line.split() == " ".join(ROW).split()
