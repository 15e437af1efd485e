"""Files of vectors for `mmesh ingest --vectors`."""

from __future__ import annotations

import click
import numpy as np
import pytest

from mmesh.candidates import Candidate, Embedded
from mmesh.cli.files.embeddings import VectorFile, with_vectors
from mmesh.cli.files.sources.items import Item, Unreadable, item_of
from mmesh.content import Content
from mmesh.vectors import DataType

ROWS = [
    item_of(Candidate("a", Content.of("a")), "rows"),
    Unreadable("b", "is not valid JSON"),
    item_of(Candidate("c", Content.of("c")), "rows"),
]


@pytest.fixture
def npy(tmp_path):
    def write(matrix: np.ndarray):
        np.save(tmp_path / "rows.npy", matrix)
        return tmp_path / "rows.npy"

    return write


@pytest.mark.parametrize("data_type", list(DataType))
def test_a_matrix_is_read_in_its_own_type(npy, data_type):
    matrix = np.arange(12).reshape(4, 3).astype(data_type.value)
    file = VectorFile(npy(matrix))
    assert (file.count, file.data_type) == (4, data_type)
    np.testing.assert_array_equal(np.stack(list(file)), matrix)


def test_the_column_of_a_parquet_file_is_read(tmp_path):
    core = pytest.importorskip(
        "arro3.core", reason="Parquet is absent: pip install 'mmesh[parquet]'"
    )
    from arro3.io import write_parquet

    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    flat = core.Array(matrix.ravel(), core.DataType.float32())
    path = tmp_path / "rows.parquet"
    write_parquet(core.Table.from_pydict({"vector": core.fixed_size_list_array(flat, 3)}), path)
    file = VectorFile(path)
    assert (file.count, file.data_type) == (None, DataType.FLOAT32)
    np.testing.assert_array_equal(np.stack(list(file)), matrix)
    for ends, is_matrix in (([0, 3, 6], True), ([0, 2, 6], False)):
        lists = core.list_array(np.array(ends, np.int32), flat)
        write_parquet(core.Table.from_pydict({"vector": lists}), path)
        if is_matrix:
            np.testing.assert_array_equal(np.stack(list(VectorFile(path))), matrix)
        else:
            with pytest.raises(click.ClickException, match="different widths"):
                list(VectorFile(path))
    write_parquet(core.Table.from_pydict({"other": flat}), path)
    with pytest.raises(click.ClickException, match="no column `vector`"):
        VectorFile(path)


@pytest.mark.parametrize(
    ("matrix", "problem"),
    [
        (np.ones((2, 2)), "holds float64"),
        (np.ones(3, np.float32), "is no matrix"),
        (np.array([["a"]], object), "cannot be read"),
    ],
)
def test_what_is_no_matrix_of_a_known_type_is_refused(npy, matrix, problem):
    with pytest.raises(click.ClickException, match=problem):
        VectorFile(npy(matrix))


def test_a_row_that_is_no_candidate_has_a_vector_too(npy):
    items = with_vectors(iter(ROWS), VectorFile(npy(np.eye(3, dtype=np.float32))), npy)
    made = [one.make() if isinstance(one, Item) else one for one in items]
    assert [type(one) for one in made] == [Embedded, Unreadable, Embedded]
    np.testing.assert_array_equal(made[2].vector, [0, 0, 1])


def test_too_few_and_too_many_vectors_are_said(npy):
    path = npy(np.eye(2, dtype=np.float32))
    *_, last = with_vectors(iter(ROWS), VectorFile(path), path)
    assert last == Unreadable("c", "rows.npy has no row 3", hides=False, source="rows")
    path = npy(np.ones((5, 2), np.float32))
    *_, last = with_vectors(iter(ROWS), VectorFile(path), path)
    assert last == Unreadable("rows.npy", "has 2 rows more than there are candidates")
