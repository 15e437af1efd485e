"""Rows of all kinds of files mean the same; whatever one does is a refusal of that row."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.effort import patient

ROWS = [
    {"id": "a", "text": "a red bicycle", "year": 1965, "price": 9.5, "sold": True},
    {"id": "b", "text": "a blue car", "year": 1971, "sold": False},
    {"id": "0", "text": "7", "price": 10.0, "maker": "Ö & Sons"},
]
WANTED = {row["id"]: {k: v for k, v in row.items() if k not in ("id", "text")} for row in ROWS}


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_json(rows):
    return json.dumps(rows, indent=2).encode()


def as_csv(rows, delimiter=",", encoding="utf-8"):
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, names, delimiter=delimiter)
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if v in (True, False) else v for k, v in row.items()})
    return out.getvalue().encode(encoding)


def as_arrow(rows, kind="parquet"):
    core = pytest.importorskip("arro3.core", reason="Arrow is absent: pip install 'mmesh[parquet]'")
    from arro3 import io as arrow

    kinds = {str: "utf8", bool: "bool", int: "int64", float: "float64"}
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        kind_of = kinds[type(next(value for value in values if value is not None))]
        columns[name] = core.Array(values, getattr(core.DataType, kind_of)())
    table, out = core.Table.from_pydict(columns), io.BytesIO()
    writers = {"parquet": arrow.write_parquet, "feather": arrow.write_ipc}
    writers.get(kind, arrow.write_ipc_stream)(table, out)
    return out.getvalue()


FILES = {
    "rows.jsonl": as_jsonl,
    "rows.json": as_json,
    "lines.json": as_jsonl,
    "array.jsonl": as_json,
    "rows.csv": as_csv,
    "semicolon.csv": lambda rows: as_csv(rows, ";"),
    "tab.tsv": lambda rows: as_csv(rows, "\t"),
    "pipe.csv": lambda rows: as_csv(rows, "|"),
    "utf16.csv": lambda rows: as_csv(rows, encoding="utf-16"),
    "utf16.jsonl": lambda rows: as_jsonl(rows).decode().encode("utf-16"),
    "unmarked.jsonl": lambda rows: as_jsonl(rows).decode().encode("utf-16-le"),
    "bom.csv": lambda rows: as_csv(rows, encoding="utf-8-sig"),
    "bom.jsonl": lambda rows: b"\xef\xbb\xbf" + as_jsonl(rows),
    "mac.csv": lambda rows: as_csv(rows).replace(b"\r\n", b"\r"),
    "rows.parquet": as_arrow,
    "rows.feather": lambda rows: as_arrow(rows, "feather"),
    "stream.arrow": lambda rows: as_arrow(rows, "arrow"),
    "rows.csv.gz": lambda rows: gzip.compress(as_csv(rows)),
    "rows.jsonl.gz": lambda rows: gzip.compress(as_jsonl(rows)),
    "rows.parquet.gz": lambda rows: gzip.compress(as_arrow(rows)),
}


@pytest.mark.parametrize("name", FILES)
def test_rows_of_all_files_mean_the_same(read, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FILES[name](ROWS))
    found = read(path)
    assert (found.ids, found.refused) == (["a", "b", "0"], [])
    assert {one: found.attributes(one) for one in found.ids} == WANTED
    types = {type(value) for value in found.attributes("a").values()}
    assert types == {int, float, bool}
    assert found.text("0") == "7"


@pytest.mark.parametrize("name", ["rows.json", "rows.JSON", "rows.json.gz", "rows.v2.JSON.GZ"])
def test_objects_on_several_lines_are_read_whatever_the_name(read, tmp_path, name):
    data = b'{"id": "a",\n "text": "x"}\n{"id": "b",\n "text": "y"}\n'
    (tmp_path / name).write_bytes(gzip.compress(data) if "z" in name.lower() else data)
    assert read(tmp_path / name).ids == ["a", "b"]


@pytest.mark.parametrize("name", ["rows.tsv", "rows.TSV", "rows.TAB.gz"])
def test_a_tab_is_the_delimiter_of_files_that_are_named_so(read, tmp_path, name):
    (tmp_path / name).write_bytes(b"text\ta,b,c\nx,y,z\t1\n")
    found = read(tmp_path / name)
    assert [one.content.text for one in found.candidates] == ["x,y,z"]


def test_the_case_of_our_columns_does_not_matter(read, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("ID;Text;Year\na;a red bicycle;1965\n")
    found = read(path)
    assert (found.ids, found.attributes("a")) == (["a"], {"Year": 1965})


def test_a_file_without_our_columns_names_those_that_it_has(read, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("sku,title\n1,a red bicycle\n2,a blue car\n")
    (refused,) = read(path).refused
    assert "columns sku, title" in refused.reason
    path = tmp_path / "rows.jsonl"
    path.write_text('{"sku": 1, "title": "a red bicycle"}\n')
    (refused,) = read(path).refused
    assert "columns are sku, title" in refused.reason


def test_a_number_is_an_id_and_only_what_is_absent_is_none(read, tmp_path):
    path = tmp_path / "rows.jsonl"
    ids = [0, 1.0, "", None, "x", True, ["y"]]
    path.write_bytes(as_jsonl([{"id": one, "text": "words"} for one in ids]))
    found = read(path)
    assert found.ids == ["0", "1", "rows.jsonl:3", "rows.jsonl:4", "x"]
    assert found.refused_ids == ["rows.jsonl:6", "rows.jsonl:7"]


@pytest.mark.parametrize("bad", [
    {"attributes": ["x"]}, {"attributes": "year=3"}, {"attributes": 3}, {"text": ["x"]},
    {"text": {"x": 1}}, {"text": True}, {"text": None}, {"text": "  "}, {"image": 3},
    {"image": {"url": "x"}}, {"image": "https://example.org/a.png"}, {"image": "s3://b/a.png"},
    {"image": "no-such.png"}, {"image": "."}, {"image": "a\0b"}, {"image": "x" * 5000},
    {"image": "data:image/png;base64,#"}, {"image": {"bytes": "#", "path": None}},
    {"id": {"x": 1}}, {"image": "../outside.png"},
], ids=lambda bad: json.dumps(bad)[:40])  # fmt: skip
def test_a_row_of_a_wrong_shape_is_refused_alone(read, tmp_path, bad):
    (tmp_path / "outside.png").write_bytes(b"x")
    path = tmp_path / "in" / "rows.jsonl"
    path.parent.mkdir()
    good = [{"id": "a", "text": "before"}, {"id": "c", "text": "after"}]
    path.write_bytes(as_jsonl([good[0], {"id": "b", "text": "words"} | bad, good[1]]))
    found = read(path)
    assert found.ids == ["a", "c"]
    assert len(found.refused) == 1
    assert len(found.refused[0].reason) < 400


def test_pictures_outside_of_the_folder_are_read_when_that_is_allowed(read, tmp_path, picture):
    (tmp_path / "p.png").write_bytes(picture())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "rows.jsonl").write_bytes(as_jsonl([{"id": "a", "image": "../p.png"}]))
    assert read(tmp_path / "in" / "rows.jsonl", allow_outside=True).ids == ["a"]


def test_a_picture_that_is_no_file_refuses_its_row(read, tmp_path):
    path = tmp_path / "rows.jsonl"
    os.mkfifo(tmp_path / "1.png")
    path.write_text(json.dumps({"id": "a", "image": "1.png"}))
    (refused,) = read(path).refused
    assert "is a pipe" in refused.reason


def test_pictures_are_read_in_whatever_form_they_come(read, tmp_path, picture):
    data = picture()
    coded = base64.b64encode(data).decode()
    (tmp_path / "p.png").write_bytes(data)
    forms = {
        "path": "p.png",
        "windows": ".\\p.png",
        "base64": coded,
        "url-safe": base64.urlsafe_b64encode(data).decode().rstrip("="),
        "data-url": f"data:image/png;base64,{coded}",
        "hub-path": {"bytes": None, "path": "p.png"},
        "hub-bytes": {"bytes": coded, "path": "gone.png"},
        "list": ["p.png"],
    }
    path = tmp_path / "rows.jsonl"
    path.write_bytes(as_jsonl([{"id": name, "image": form} for name, form in forms.items()]))
    found = read(path)
    assert found.ids == list(forms)
    assert {one.content.images[0].data for one in found.candidates} == {data}


def test_parquet_as_the_hub_has_it_is_read(read, tmp_path, picture):
    core = pytest.importorskip("arro3.core", reason="Arrow is absent: pip install 'mmesh[parquet]'")
    from arro3.io import write_parquet

    data = picture()
    fields = [core.Field("bytes", core.DataType.binary()), core.Field("path", core.DataType.utf8())]
    images = core.struct_array(
        [core.Array([data, data], fields[0].type), core.Array(["x.png", None], fields[1].type)],
        fields=fields,
    )
    label = core.Array([3, 4], core.DataType.int64())
    path = tmp_path / "hf.parquet"
    write_parquet(core.Table.from_pydict({"image": images, "label": label}), path)
    found = read(path)
    assert found.ids == ["hf.parquet:1", "hf.parquet:2"]
    assert found.attributes("hf.parquet:2") == {"label": 4}
    assert found.candidates[0].content.images[0].data == data


def test_columns_that_no_attribute_can_hold_refuse_no_row(read, tmp_path):
    core = pytest.importorskip("arro3.core", reason="Arrow is absent: pip install 'mmesh[parquet]'")
    from arro3.io import write_parquet

    kinds = core.DataType
    times = core.Array([1_700_000_000, None], kinds.int64())
    columns = {
        "text": core.Array(["a", "b"], kinds.utf8()),
        "created": times.cast(kinds.timestamp("s")),
        "zoned": times.cast(kinds.timestamp("s", tz="Europe/Berlin")),
        "far": core.Array([9 * 10**18, 0], kinds.int64()).cast(kinds.timestamp("s")),
        "day": core.Array([19000, None], kinds.int32()).cast(kinds.date32()),
        "price": core.Array([1.5, 2.5], kinds.float64()).cast(kinds.decimal128(5, 2)),
        "raw": core.Array([b"x", None], kinds.binary()),
        "nan": core.Array([float("nan"), 1.5], kinds.float64()),
        "big": core.Array([2**63, 1], kinds.uint64()),
        "My Column": core.Array(["x", "y"], kinds.utf8()),
        "__index_level_0__": core.Array([0, 1], kinds.int64()),
    }
    path = tmp_path / "rows.parquet"
    write_parquet(core.Table.from_pydict(columns), path)
    found = read(path)
    assert found.refused == []
    first, second = (dict(one.attributes) for one in found.candidates)
    moment = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert first == {
        "created": moment,
        "zoned": moment,
        "day": datetime(2022, 1, 8, tzinfo=UTC),
        "price": 1.5,
        "My Column": "x",
    }
    assert second["nan"] == 1.5
    assert second["big"] == 1
    assert "bytes (raw)" in found.notes["attributes left out"]
    assert "more than 64 bits (big)" in found.notes["attributes left out"]
    assert "index of pandas" in found.notes["attributes left out"]
    assert "decimals are floats" in found.notes["attributes changed"]


def test_maps_of_arrow_are_objects(read):
    pytest.importorskip("arro3.core", reason="Arrow is absent: pip install 'mmesh[parquet]'")
    found = read(Path(__file__).parent / "maps.parquet")  # of pyarrow; arro3 writes none
    assert found.refused == []
    first, second = (dict(one.attributes) for one in found.candidates)
    assert (first, second) == ({"color": "red", "m.color": "red"}, {})


def test_structs_of_arrow_are_taken_apart(read, tmp_path):
    core = pytest.importorskip("arro3.core", reason="Arrow is absent: pip install 'mmesh[parquet]'")
    from arro3.io import write_parquet

    size = core.Field("size", core.DataType.int64())
    box = core.struct_array([core.Array([1, 2], size.type)], fields=[size])
    text = core.Array(["x", "y"], core.DataType.utf8())
    write_parquet(core.Table.from_pydict({"text": text, "Box": box}), tmp_path / "rows.parquet")
    found = read(tmp_path / "rows.parquet")
    assert [dict(one.attributes) for one in found.candidates] == [{"Box.size": 1}, {"Box.size": 2}]


def test_names_of_columns_become_names_of_attributes(read, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id,text,My Column,My_Column,Größe (cm),価格\na,x,1,2,3,4\n")
    found = read(path)
    assert found.attributes("a") == {
        "My Column": 1,
        "My_Column": 2,
        "Größe (cm)": 3,
        "価格": 4,
    }


def test_objects_lists_and_null_are_attributes_where_they_can_be(read, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"id": "a", "text": "x", "attributes": {"y": null, "n": NaN, "tags": [1, 2], "e": [], '
        '"deep": {"er": {"k": 1}}, "mixed": [{"k": 1}], "long": "' + "x" * 5000 + '"}}\n'
    )
    found = read(path)
    assert found.attributes("a") == {"tags": ("1", "2"), "e": (), "deep.er.k": 1}
    assert "lists are of texts (tags)" in found.notes["attributes changed"]
    assert "(mixed)" in found.notes["attributes left out"]
    assert "(long)" in found.notes["attributes left out"]


def test_no_more_attributes_are_made_than_a_candidate_may_have(read, tmp_path):
    path = tmp_path / "rows.csv"
    names = [f"c{n}" for n in range(100)]
    path.write_text(",".join(["id", "text", *names]) + "\na,words," + ",".join("1" * 100) + "\n")
    found = read(path)
    assert len(found.attributes("a")) == 64
    assert "36 more than 64" in found.notes["attributes left out"]


def test_names_without_end_take_no_time_without_end(read, tmp_path):
    """To look through all earlier names for each new one took 12 s."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(as_jsonl([{"id": str(n), "text": "x", f"n{n}": n} for n in range(20_000)]))
    begun = time.process_time()
    assert len(read(path).ids) == 20_000
    assert time.process_time() - begun < patient(6)


@pytest.mark.parametrize("number", ["1e400000", "1e19", "NaN", "Infinity", "1.5"])
def test_what_is_no_integer_of_64_bits_refuses_its_row_at_once(read, rules, tmp_path, number):
    path = tmp_path / "rows.csv"
    path.write_text(f"id,text,n\na,x,{number}\nb,x,-7.0\n")
    found = read(path, columns=rules(types={"n": "integer"}))
    assert (found.ids, found.refused_ids) == (["b"], ["a"])
    assert found.attributes("b") == {"n": -7}


@pytest.mark.parametrize(
    ("text", "ids", "refused"),
    [
        ('[{"id": "a", "text": "x"}]\n[{"id": "b", "text": "y"}]', ["a", "b"], 0),
        ('[][{"id": "a", "text": "x"}]  []\n', ["a"], 0),
        ('[{"id": "a", "text": "x"}]\n{"id": "b", "text": "y"}', ["a"], 1),
        ('[{"id": "a", "text": "x"}] garbage', ["a"], 1),
    ],
)
def test_what_follows_an_array_is_read_or_told(read, tmp_path, text, ids, refused):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    found = read(path)
    assert (found.ids, len(found.refused)) == (ids, refused)


def test_columns_are_chosen_ignored_and_typed(read, rules, tmp_path):
    rows = [{"id": "a", "text": "x", "year": 1965, "sku": "007", "price": "9.5", "n": "1"}]
    for name, data in (("rows.jsonl", as_jsonl(rows)), ("rows.csv", as_csv(rows))):
        path = tmp_path / name
        path.write_bytes(data)
        types = {"year": "string", "price": "float", "sku": "integer", "n": "boolean"}
        found = read(path, columns=rules(types=types))
        assert found.attributes("a") == {"year": "1965", "price": 9.5, "sku": 7, "n": True}
        found = read(path, columns=rules(columns=frozenset({"year"})))
        assert found.attributes("a") == {"year": 1965}
        found = read(path, columns=rules(ignore=frozenset({"year", "price", "n", "yaer"})))
        assert found.attributes("a") == {"sku": "007"}
        assert "yaer" in found.notes["options"]
        found = read(path, columns=rules(types={"sku": "boolean"}))
        assert "no boolean" in found.refused[0].reason


def test_export_files_are_left_to_import(read, tmp_path):
    core = pytest.importorskip("arro3.core", reason="Arrow is absent: pip install 'mmesh[parquet]'")
    from arro3.io import write_parquet

    path = tmp_path / "rows.parquet"
    table = core.Table.from_pydict({"text": core.Array(["a"], core.DataType.utf8())})
    write_parquet(table, path, key_value_metadata={"mmesh.format": "1"})
    (refused,) = read(path).refused
    assert "mmesh import" in refused.reason


@pytest.mark.parametrize(
    ("name", "text", "ids", "refused"),
    [
        ("r.jsonl", '{"text": "a"}\n\n\n{"text": "b"}\nnot json\n{}\n{"text": "c"}\n', "125", "34"),
        ("r.jsonl", '[{"text": "a"},\n\n7, {},\n{"text": "b"}]', "14", "23"),
        ("r.csv", "text,n\na,1\n,,\n\nb,1,1\nc,2\n,3\nd,4\n", "135", "24"),
        ("r.csv", 'text,n\na,1\n\n"b" b,1\n,\n,1\nc,3\n', "14", "23"),
    ],
)
def test_rows_have_one_number_whether_they_are_refused_or_not(
    read, tmp_path, name, text, ids, refused
):
    path = tmp_path / name
    path.write_text(text)
    found = read(path)
    assert found.ids == [f"{name}:{number}" for number in ids]
    assert found.refused_ids == [f"{name}:{number}" for number in refused]


def test_a_broken_line_of_json_is_told_by_its_place_in_the_file(read, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": b}\n')
    (refused,) = read(path).refused
    assert refused.reason == "line 3 is not valid JSON: Expecting value at column 10"


@pytest.mark.parametrize(
    ("row", "name", "value"),
    [
        ({"a": {"b": 1}, "a.b": 2}, "a.b", 2),
        ({"a.b": 1, "a": {"b": 2}}, "a.b", 2),
        ({"attributes": {"year": 1}, "year": 2}, "year", 2),
    ],
)
def test_values_of_one_name_are_counted_and_the_last_stays(read, tmp_path, row, name, value):
    path = tmp_path / "r.jsonl"
    path.write_bytes(as_jsonl([{"id": "x", "text": "words"} | row, {"id": "y", "text": "words"}]))
    found = read(path)
    assert found.attributes("x").get(name) == value
    assert f"1 earlier values of a name ({name})" in found.notes["attributes left out"]


def test_of_our_columns_in_several_cases_the_last_stays_and_it_is_said(read, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(as_jsonl([{"id": "x", "Text": "first", "TEXT": "last"}]))
    found = read(path)
    assert found.text("x") == "last"
    assert "1 earlier values of a name (text)" in found.notes["attributes left out"]
