"""Files that end early: what comes before is read, and where it ends is said."""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path

import pytest

LINES = [json.dumps({"id": str(n), "text": f"row {n}"}) for n in range(2000)]


def test_an_array_that_is_cut_short_gives_its_beginning(read, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("[" + ",\n".join(LINES)[:-20])
    found = read(path)
    assert len(found.ids) == 1999
    assert found.refused[0].reason.startswith("after row 1999: ")


def test_a_gzip_file_that_is_cut_short_gives_its_beginning(read, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    rows = [
        json.dumps({"id": str(n), "text": random.Random(n).randbytes(50).hex()})
        for n in range(5000)
    ]
    path.write_bytes(gzip.compress("\n".join(rows).encode())[:-1000])
    found = read(path)
    assert 0 < len(found.ids) < 5000
    assert found.refused[-1].reason.startswith(f"after row {len(found.ids)}: ")


@pytest.mark.parametrize("name", ["rows.parquet", "rows.feather", "rows.arrow", "rows.csv.gz"])
@pytest.mark.parametrize("data", [b"", b"PAR1", b"junk" * 100, b"ARROW1\0\0" + b"x" * 50])
def test_a_file_of_something_else_ends_itself_only(read, tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    (tmp_path / "good.jsonl").write_text(LINES[0])
    found = read(tmp_path / name, tmp_path / "good.jsonl")
    assert found.ids == ["0"]
    assert len(found.refused) <= 1


def test_a_damaged_parquet_file_gives_the_pages_before_the_damage(read, tmp_path):
    core = pytest.importorskip("arro3.core", reason="Arrow is absent: pip install 'mmesh[parquet]'")
    from arro3.io import write_parquet

    out = io.BytesIO()
    texts = [random.Random(n).randbytes(100).hex() for n in range(4000)]
    table = core.Table.from_pydict({"text": core.Array(texts, core.DataType.utf8())})
    write_parquet(table, out, max_row_group_size=1000, compression="zstd(3)")
    data = bytearray(out.getvalue())
    middle = len(data) * 6 // 10
    data[middle : middle + 4000] = b"\xff" * 4000
    path = tmp_path / "rows.parquet"
    path.write_bytes(bytes(data))
    found = read(path)
    assert 1000 <= len(found.ids) < 4000
    assert found.refused[0].reason.startswith("after row ")


def test_deep_and_odd_json_is_refused_by_line(read, tmp_path):
    path = tmp_path / "rows.jsonl"
    odd = ["[" * 100_000, '{"a": ' * 100_000, '{"id": 1', "null", '"x"', "{}", "9" * 5000]
    path.write_text("\n".join([LINES[0], *odd, LINES[1]]))
    found = read(path)
    assert found.ids == ["0", "1"]
    assert len(found.refused) == len(odd)


def test_a_file_that_ends_its_reader_ends_nothing_else(read, tmp_path):
    pytest.importorskip("arro3.core", reason="Arrow is absent: pip install 'mmesh[parquet]'")
    (tmp_path / "good.jsonl").write_text(LINES[0])
    found = read(Path(__file__).parent / "damaged.parquet", tmp_path / "good.jsonl")
    assert found.ids == ["0"]
    assert found.refused[0].reason == "is damaged: its reader was ended by it"


def test_a_reader_of_rows_is_not_left_behind(read, tmp_path):
    core = pytest.importorskip("arro3.core", reason="Arrow is absent: pip install 'mmesh[parquet]'")
    from arro3.io import write_parquet

    from mmesh.cli.files.sources.arrow_rows import arrow_rows
    from mmesh.cli.files.sources.notes import Notes

    texts = core.Array([f"text {n}" * 50 for n in range(50_000)], core.DataType.utf8())
    write_parquet(core.Table.from_pydict({"text": texts}), tmp_path / "rows.parquet")
    before = children()
    rows = arrow_rows(tmp_path / "rows.parquet", Notes())
    next(rows)
    assert len(children() - before) == 1
    rows.close()
    assert children() == before


def children() -> set[str]:
    """Return the processes that this one has started and not waited for."""
    tasks = Path("/proc/self/task").iterdir()
    return {pid for task in tasks for pid in (task / "children").read_text().split()}
