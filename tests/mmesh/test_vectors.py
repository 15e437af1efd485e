import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mmesh.errors import InvalidVector
from mmesh.vectors import DataType, pack, unit_rows, unpack

matrices = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-1, 1, width=32),
)


@given(matrices)
def test_unpack_inverts_pack(matrix):
    np.testing.assert_array_equal(unpack(pack(matrix), matrix.shape[1]), matrix)


@pytest.mark.parametrize(
    ("data_type", "tolerance"), [(DataType.FLOAT16, 1e-3), (DataType.INT8, 0.5 / 127 + 1e-6)]
)
@given(matrix=matrices)
def test_narrow_types_come_back_within_their_precision(matrix, data_type, tolerance):
    back = unpack(pack(matrix, data_type), matrix.shape[1], data_type)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, matrix, atol=tolerance)


def test_bytes_that_are_no_whole_rows_are_refused():
    with pytest.raises(InvalidVector, match="no whole number of rows"):
        unpack(b"\0" * 10, 2)


@pytest.mark.parametrize("dim", [0, -1, 16385])
def test_a_dim_out_of_range_is_refused(dim):
    with pytest.raises(InvalidVector, match="dim"):
        unpack(b"", dim)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_row_without_direction_is_refused_by_number(bad):
    matrix = np.ones((3, 4), np.float32)
    matrix[1] = bad
    with pytest.raises(InvalidVector) as caught:
        unit_rows(matrix)
    assert caught.value.field == "vectors[1]"


@given(matrices.filter(lambda m: (np.abs(m).max(axis=1) > 1e-3).all()))
def test_unit_rows_have_length_one_and_keep_their_direction(matrix):
    unit = unit_rows(matrix)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    assert ((unit * matrix).sum(axis=1) > 0).all()


def test_a_row_is_brought_to_unit_length_alike_alone_and_among_others():
    matrix = np.random.default_rng(1).normal(size=(50, 384)).astype(np.float32)
    together = unit_rows(matrix)
    alone = np.concatenate([unit_rows(matrix[n : n + 1]) for n in range(50)])
    np.testing.assert_array_equal(alone, together)
