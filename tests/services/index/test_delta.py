"""The delta against a plain matrix product."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesh.filters import Compare, Operator
from services.index.segments.delta import Delta
from services.index.segments.ids import hashes_of
from services.index.segments.segment import Segment

DIM = 8
EVEN = Compare("parity", Operator.EQUAL, "even")


def unit(rng, n, dim=DIM):
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def append(delta, ids, vectors):
    start = len(delta)
    attributes = [
        json.dumps({"parity": ["even", "odd"][row % 2]}) for row in range(start, start + len(ids))
    ]
    return delta.append_many(ids, hashes_of(ids), attributes, vectors)


def check(block, vectors, alive, queries, limit, condition):
    """Compare scores, not rows: equal rows may come in any order."""
    wanted = np.array([row for row in alive if condition is None or row % 2 == 0], int)
    scores, rows = block.search(queries, limit, condition)
    expected = -np.sort(-(queries @ vectors[wanted].T), axis=1)[:, :limit]
    for query_scores, query_rows, best in zip(scores, rows, expected, strict=True):
        found = query_rows >= 0
        np.testing.assert_allclose(query_scores[found], best, atol=1e-5)
        assert set(query_rows[found]) <= set(wanted)
        assert len(set(query_rows[found])) == found.sum()
        assert not found[found.sum() :].any()


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 9)), min_size=1, max_size=12),
    st.integers(1, 12),
    st.integers(1, 5),
)
def test_a_delta_finds_what_lives_and_matches(seed, writes, limit, m):
    rng = np.random.default_rng(seed)
    delta, vectors, alive = Delta(DIM, 240), np.empty((0, DIM), np.float32), set()
    for count, killed in writes:
        new = unit(rng, count)
        rows = append(delta, [f"id{len(delta) + n}" for n in range(count)], new)
        vectors, alive = np.concatenate([vectors, new]), alive | set(rows.tolist())
        dead = rng.integers(0, len(delta), killed)
        delta.kill(dead)
        alive -= set(dead.tolist())
        for condition in (None, EVEN):
            check(delta, vectors, alive, unit(rng, m), limit, condition)
    assert len(delta) - delta.dead == len(alive)
    bits = np.unpackbits(np.frombuffer(delta.alive_bits(), np.uint8), bitorder="little")
    assert set(np.flatnonzero(bits).tolist()) == alive


def test_a_saved_delta_is_a_segment_of_the_same_rows(tmp_path):
    rng = np.random.default_rng(0)
    delta = Delta(DIM, 100)
    append(delta, [f"id{n}\0é" for n in range(100)], unit(rng, 100))
    delta.kill(np.arange(0, 100, 3))
    delta.save(tmp_path)
    segment = Segment.open(tmp_path)
    segment.set_alive(delta.alive_bits())
    assert (len(segment), segment.dead) == (100, delta.dead)
    rows = np.array([5, 99, 0])
    assert segment.ids(rows) == delta.ids(rows)
    assert segment.attributes(rows) == delta.attributes(rows)
    np.testing.assert_array_equal(segment.vectors(rows), delta.vectors(rows))
    queries = unit(rng, 4)
    for condition in (None, EVEN):
        np.testing.assert_array_equal(
            segment.search(queries, 9, condition)[1], delta.search(queries, 9, condition)[1]
        )


def test_the_newest_row_of_an_id_is_found():
    delta = Delta(DIM, 3)
    append(delta, ["a", "b"], unit(np.random.default_rng(0), 2))
    append(delta, ["a"], unit(np.random.default_rng(1), 1))
    assert [delta.find(name) for name in ("a", "b", "c")] == [2, 1, -1]


def test_rows_beyond_the_capacity_are_refused():
    delta = Delta(DIM, 2)
    with pytest.raises(ValueError, match="do not fit"):
        append(delta, ["a", "b", "c"], unit(np.random.default_rng(0), 3))
    assert len(delta) == 0
    append(delta, ["a", "b"], unit(np.random.default_rng(0), 2))
    assert delta.is_full


def test_an_empty_delta_finds_nothing():
    scores, rows = Delta(DIM, 4).search(np.ones((2, DIM), np.float32), 3, EVEN)
    assert scores.shape == rows.shape == (2, 0)


def test_memory_is_counted_as_rows_come():
    delta = Delta(DIM, 100)
    empty = delta.memory()
    ids = [f"id{n}" for n in range(50)]
    for start in (0, 20):
        append(delta, ids[start : start + 30], unit(np.random.default_rng(1), 30))
    told = delta.memory()
    rows = np.arange(len(delta))
    assert told["ids"] - empty["ids"] == sum(map(len, delta.ids(rows))) + 160 * 60
    texts = sum(map(len, delta.attributes(rows)))
    assert told["attributes"] - empty["attributes"] == texts + 60 * 60
