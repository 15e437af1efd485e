"""CSV: types of whole columns, and rows that cannot be read."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

DAY = datetime(2024, 1, 31, tzinfo=UTC)


def written(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        (["1", "2", "-3"], [1, 2, -3]),
        (["1", "2.5", ""], [1.0, 2.5, None]),
        (["10", "1e+3"], [10.0, 1000.0]),
        (["12E3", "1"], ["12E3", "1"]),
        (["+4912", "1"], ["+4912", "1"]),
        (["true", "FALSE"], [True, False]),
        (["1", "x"], ["1", "x"]),
        (["1", "true"], ["1", "true"]),
        (["007", "012"], ["007", "012"]),
        (["1", "NaN", "null"], [1, None, None]),
        (["x", "null"], ["x", "null"]),
        (["12345678901234567890", "1"], ["12345678901234567890", "1"]),
        (
            ["2024-01-31", "2024-01-31T12:30:00+02:00", ""],
            [DAY, DAY.replace(hour=10, minute=30), None],
        ),
        (["2024-01-31", "soon"], ["2024-01-31", "soon"]),
        (["2024"], [2024]),
        (["1_000"], ["1_000"]),
        (["\u0661"], ["\u0661"]),
    ],
)
def test_the_type_of_a_column_is_that_of_all_its_cells(read, tmp_path, cells, wanted):
    rows = "".join(f"{n},words,{cell}\n" for n, cell in enumerate(cells))
    found = read(written(tmp_path, f"id,text,v\n{rows}"))
    values = [one.attributes.get("v") for one in found.candidates]
    assert values == wanted
    assert [type(value) for value in values] == [type(value) for value in wanted]


def test_a_comma_is_the_point_of_numbers_between_semicolons(read, tmp_path):
    found = read(written(tmp_path, "id;text;price\na;x;9,99\nb;y;10\n"))
    assert [one.attributes["price"] for one in found.candidates] == [9.99, 10.0]


@pytest.mark.parametrize(
    "bad",
    [
        "b,x,1,surplus\n",
        'b,"x"y,1\n',
        'b,"never closed,1\n',
        'b,x,1,"{""a"": 1}"\n',
    ],
)
def test_a_row_that_is_no_row_is_refused_alone(read, tmp_path, bad):
    found = read(written(tmp_path, f"id,text,n\na,one,1\n{bad}c,three,3\nd,four,4\n"))
    assert found.ids == ["a", "c", "d"]
    assert found.refused_ids == ["rows.csv:2"]
    assert found.attributes("d") == {"n": 4}


def test_bad_attributes_refuse_their_row(read, tmp_path):
    text = 'id,text,attributes\na,x,"{""year"": 1965}"\nb,y,not json\nc,z,"[1,2]"\nd,w,\n'
    found = read(written(tmp_path, text))
    assert (found.ids, found.refused_ids) == (["a", "d"], ["b", "c"])
    assert found.attributes("a") == {"year": 1965}


def test_large_cells_are_read(read, tmp_path):
    found = read(written(tmp_path, f"id,text\na,{'x' * 300_000}\nb,y\n"))
    assert (found.ids, found.refused) == (["a", "b"], [])


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_lines_that_are_no_utf_8_are_read_all_the_same(read, tmp_path, encoding):
    text = "id,text,n\na,plain,1\nb,ein Gerät,2\n".encode(encoding) + "c,Öl,3\n".encode()
    found = read(written(tmp_path, text))
    assert (found.text("b"), found.text("c")) == ("ein Gerät", "Öl")
    assert "1 lines read as cp1252" in found.notes["not UTF-8"]
    assert "rows.csv" in found.notes["not UTF-8"]


def test_the_encoding_can_be_said(read, tmp_path):
    from mmesh.cli.files.sources.csv_rows import Dialect

    path = written(tmp_path, "id,text\na,日本語\n", "shift_jis")
    assert read(path, dialect=Dialect("", "shift_jis")).text("a") == "日本語"


@pytest.mark.parametrize(
    ("name", "mark"),
    [(name, "utf-8-sig") for name in ("", "utf-8", "UTF-8", "utf8", "U8", "utf-8-sig")]
    + [(name, name + mark) for name in ("utf-16", "utf-32") for mark in ("", "-le", "-be")]
    + [("UTF-16LE", "utf-16-le"), ("utf-32-be", "utf-32-be")]
    + [("gb18030", "gb18030")],
)
def test_a_byte_order_mark_is_no_part_of_the_first_column(read, tmp_path, name, mark):
    from mmesh.cli.files.sources.csv_rows import Dialect

    start = "" if mark in ("utf-8-sig", "utf-16", "utf-32") else "\ufeff"
    path = written(tmp_path, f"{start}id,text\na,Öl\n", mark)
    found = read(path, dialect=Dialect("", name))
    assert (found.ids, found.text("a"), found.attributes("a")) == (["a"], "Öl", {})


def test_a_first_line_that_is_no_utf_8_loses_its_mark_all_the_same(read, tmp_path):
    path = written(tmp_path, b"\xef\xbb\xbfid,text,Gr\xf6\xdfe\na,x,1\n")
    assert (read(path).ids, read(path).attributes("a")) == (["a"], {"Größe": 1})


def test_empty_files_and_headers_alone_have_no_rows(read, tmp_path):
    for text in ("", "id,text\n", "\n\n"):
        found = read(written(tmp_path, text))
        assert (found.ids, found.refused) == ([], [])


def test_columns_without_a_name_and_second_ones_are_left_out(read, tmp_path):
    found = read(written(tmp_path, ",id,text,n,n\n0,a,x,1,2\n"))
    assert found.attributes("a") == {"n": 1}
    assert "without a name" in found.notes["attributes left out"]
    assert "rows.csv: n" in found.notes["attributes left out"]
