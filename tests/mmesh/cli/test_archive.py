"""Exports as files: what is written is what is read, and what is no export is refused."""

from __future__ import annotations

import json
import os
import random

import click
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmesh.candidates import Candidate, Embedded, Page
from mmesh.cli.files.sources.arrow_stream import record_batches
from mmesh.cli.files.sources.items import Unreadable
from mmesh.content import Content, Image
from mmesh.values.timestamps import to_utc

arro3 = pytest.importorskip("arro3.core", reason="Parquet is absent: pip install 'mmesh[parquet]'")

import arro3.io as arro3_io  # noqa: E402  # only where it is installed
from arro3.io import read_parquet, write_parquet  # noqa: E402

from mmesh.cli.files.archive import (  # noqa: E402
    Header,
    has_vectors,
    header_of,
    read_archive,
    read_batches,
    read_header,
    write_archive,
)

DIM = 3
HEADER = Header("photos", "lite-1", DIM, "epoch:7", 5)
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)
parts = st.one_of(words, st.builds(Image, st.binary(min_size=1), words))
values = st.one_of(
    words,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(words, max_size=3).map(tuple),
    st.datetimes().map(to_utc),
)
candidates = st.builds(
    Candidate,
    words,
    st.lists(parts, min_size=1, max_size=4).map(lambda p: Content(tuple(p))),
    st.dictionaries(st.from_regex(r"[a-z_.\-]{1,9}", fullmatch=True), values, max_size=4),
)


def vectors_for(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, DIM)).astype(np.float32)


def pages_of(found: list[Candidate], vectors: np.ndarray | None, size: int = 2):
    for start in range(0, len(found), size) or [0]:
        rows = None if vectors is None else vectors[start : start + size]
        yield Page(tuple(found[start : start + size]), "", rows)


def types_in(candidate: Candidate) -> dict[str, type]:
    return {name: type(value) for name, value in candidate.attributes.items()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(candidates, max_size=5), st.booleans())
def test_what_is_written_is_read_again(tmp_path, found, with_vectors):
    path = tmp_path / "export.parquet"
    vectors = vectors_for(len(found)) if with_vectors else None
    counts = []
    written = write_archive(
        path, HEADER, pages_of(found, vectors), images=True, on_rows=counts.append
    )
    assert written == len(found) == counts[-1]
    file = read_parquet(path)  # in this process, which is quicker
    assert header_of(file.schema.metadata, path) == HEADER
    assert ("vector" in file.schema.names) == with_vectors
    read = list(read_batches(file, path, vectors=with_vectors))
    back = [one.candidate if isinstance(one, Embedded) else one for one in read]
    assert back == found
    assert [types_in(one) for one in back] == [types_in(one) for one in found]
    if vectors is not None:
        assert all((one.vector == row).all() for one, row in zip(read, vectors, strict=True))


def test_large_pictures_are_written_and_read_a_few_at_a_time(tmp_path):
    # About 2 s: it writes 45 MB.
    path, picture, unwritten = tmp_path / "export.parquet", os.urandom(2_500_000), []

    def pages():
        for n in range(18):
            yield Page((Candidate(str(n), Content((Image(picture, "image/png"),))),), "")
            unwritten.append(len(picture) * (n + 1) - path.stat().st_size)

    assert write_archive(path, HEADER, pages(), images=True, on_rows=lambda rows: None) == 18
    assert max(unwritten) < 40_000_000
    with record_batches(path, arro3_io) as reader:
        sizes = [batch.num_rows for batch in reader]
    assert sum(sizes) == 18
    assert max(sizes) <= 8


def test_pictures_that_come_after_texts_are_written_a_few_at_a_time(tmp_path):
    path, unwritten = tmp_path / "export.parquet", []

    def pages():
        yield Page(tuple(Candidate(f"a{n:03}", Content.of("words")) for n in range(256)), "")
        for n in range(256):
            image = Content((Image(os.urandom(300_000), "image/png"),))
            yield Page((Candidate(f"b{n:03}", image),), "")
            unwritten.append(300_000 * (n + 1) - path.stat().st_size)

    write_archive(path, HEADER, pages(), images=True, on_rows=lambda rows: None, pictures=256)
    assert max(unwritten) < 40_000_000


def test_small_rows_share_row_groups(tmp_path):
    path = tmp_path / "export.parquet"
    found = [Candidate(f"{n:05}", Content.of(f"text {n}")) for n in range(9_000)]
    pages = pages_of(found, vectors_for(len(found)), 256)
    write_archive(path, HEADER, pages, images=True, on_rows=lambda rows: None)
    assert path.read_bytes().count(b"PAR1") == 2  # begin and end
    read = list(read_batches(read_parquet(path), path, vectors=True))
    assert [one.candidate for one in read] == found
    np.testing.assert_array_equal([one.vector for one in read], vectors_for(len(found)))


def test_a_file_is_read_in_order_whatever_its_size(tmp_path):
    path = tmp_path / "export.parquet"
    found = [Candidate(f"{n:05}", Content.of("words")) for n in range(3000)]
    pages = pages_of(found, vectors_for(3000), 1000)
    write_archive(path, HEADER, pages, images=False, on_rows=lambda _: None)
    assert read_header(path) == HEADER
    assert has_vectors(path)
    read = list(read_archive(path, vectors=True))
    assert [one.candidate for one in read] == found
    np.testing.assert_array_equal(np.stack([one.vector for one in read]), vectors_for(3000))
    assert next(read_archive(path, vectors=False)) == found[0]  # and its reader is not waited for


@pytest.mark.parametrize("where", [0.8, 0.85, 0.9, 0.95])
def test_an_export_that_is_damaged_is_refused_in_words(tmp_path, where):
    path = tmp_path / "export.parquet"
    found = [Candidate(f"{n:05}", Content.of(f"words {n}")) for n in range(100)]
    write_archive(path, HEADER, pages_of(found, None), images=True, on_rows=lambda _: None)
    data, drawn = bytearray(path.read_bytes()), random.Random(0)
    begin, end = int(len(data) * where), len(data) - 8
    for _ in range(40):
        data[drawn.randrange(begin, min(begin + 60, end))] = drawn.randrange(256)
    path.write_bytes(data)
    with pytest.raises(click.ClickException, match=r"parquet (cannot be read|is damaged)"):
        read_header(path), list(read_archive(path, vectors=False))


def test_the_columns_are_plain_parquet_that_others_can_read(tmp_path):
    path = tmp_path / "export.parquet"
    content = Content.of("a kitten", b"one", "on a sofa", Image(b"two", "image/png"))
    found = [Candidate("cat", content, {"year": 1990, "score": 2.0, "tags": ("a", "b")})]
    write_archive(
        path, HEADER, pages_of(found, vectors_for(1)), images=True, on_rows=lambda _: None
    )
    reader = read_parquet(path)
    (row,) = [row for batch in reader for row in batch.to_struct_array().to_pylist()]
    assert row["id"] == "cat"
    assert row["modality"] == "image_text"
    assert row["text"] == "a kitten\non a sofa"
    assert row["images"] == [b"one", b"two"]
    assert json.loads(row["parts"]) == [
        {"text": "a kitten"},
        {"image": 0, "media_type": ""},
        {"text": "on a sofa"},
        {"image": 1, "media_type": "image/png"},
    ]
    assert json.loads(row["attributes"]) == {"year": 1990, "score": 2.0, "tags": ["a", "b"]}
    np.testing.assert_array_equal(row["vector"], vectors_for(1)[0])
    metadata = reader.schema.metadata
    assert metadata[b"mmesh.collection"] == b"photos"
    assert metadata[b"mmesh.model_fingerprint"] == b"lite-1"
    assert metadata[b"mmesh.count"] == b"5"


def test_pictures_that_were_left_out_are_said(tmp_path):
    path = tmp_path / "export.parquet"
    found = [Candidate("text", Content.of("words")), Candidate("picture", Content.of(b"bytes"))]
    write_archive(path, HEADER, pages_of(found, None), images=False, on_rows=lambda _: None)
    text, picture = read_archive(path, vectors=False)
    assert text == found[0]
    assert picture == Unreadable("picture", "its pictures were left out of the export")


def test_what_interrupts_an_export_is_raised_as_it_is(tmp_path):
    def pages():
        yield Page((Candidate("one", Content.of("words")),), "")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_archive(tmp_path / "e.parquet", HEADER, pages(), images=True, on_rows=lambda _: None)


def test_a_file_that_is_no_export_is_refused(tmp_path):
    other, cut = tmp_path / "other.parquet", tmp_path / "cut.parquet"
    ids = arro3.Array(["a"], arro3.DataType.utf8())
    write_parquet(arro3.Table.from_pydict({"id": ids}), other)
    cut.write_bytes(other.read_bytes()[:-20])
    empty = tmp_path / "empty.parquet"
    empty.touch()
    with pytest.raises(click.ClickException, match="not made by `mmesh export`"):
        read_header(other)
    for path in (cut, empty):
        with pytest.raises(click.ClickException, match=r"not a Parquet file|is cut short"):
            read_header(path)


def test_an_export_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "later.parquet"
    header = Header("photos", "lite-1", DIM, "epoch:7", 0, format=2)
    write_archive(path, header, pages_of([], None), images=True, on_rows=lambda _: None)
    with pytest.raises(click.ClickException, match="later version"):
        read_header(path)
