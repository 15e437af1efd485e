"""Reproducible searches: the same hits and scores, however rows are stored and queries batched."""

import numpy as np
import pytest

from mmesh.content import Modality
from mmesh.filters import Compare, Operator
from services.index.log.rows import Rows, attributes_to_json
from services.index.segments.delta import Delta
from services.index.segments.segment import Segment
from services.index.view import reproducible
from services.index.view.view import View

DIM, ROWS, LIMIT = 32, 600, 20
TEXT = [Modality.TEXT]


@pytest.fixture(scope="module")
def rows():
    """Rows of which many are copies of others."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(ROWS, DIM)).astype(np.float32)
    vectors[200:500] = vectors[random.integers(4, size=300)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"id{n}" for n in random.permutation(ROWS)]
    attributes = [attributes_to_json({"odd": bool(n % 2)}) for n in range(ROWS)]
    seqs, gone = np.arange(1, ROWS + 1), np.zeros(ROWS, np.bool_)
    return Rows(ids, TEXT * ROWS, attributes, seqs, gone, vectors)


@pytest.fixture(scope="module")
def queries(rows):
    """Ten that lie at copies, and ten that do not."""
    random = np.random.default_rng(1)
    near = rows.vectors[:10] + 0.01 * random.normal(size=(10, DIM)).astype(np.float32)
    found = np.vstack([near, random.normal(size=(10, DIM)).astype(np.float32)])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def view_of(rows, order, delta_rows, tmp_path=None):
    """A view that got the rows in some order; with a path its first delta is a segment."""
    view = View("c", "e", DIM, delta_rows)
    chosen = Rows(
        [rows.ids[n] for n in order], TEXT * len(order), [rows.attributes[n] for n in order],
        np.arange(1, len(order) + 1), rows.deleted[order], rows.vectors[order],
    )  # fmt: skip
    view.apply(chosen, len(order))
    if tmp_path is not None:
        partition = view.partitions[Modality.TEXT]
        first = partition.full_deltas[0]
        first.save(tmp_path)
        partition.replace([first], [np.arange(len(first))], Segment.open(tmp_path))
    return view


def found(view, queries, size, condition=None):
    """Ids and scores of each query, asked in batches of a size."""
    lists = []
    for start in range(0, len(queries), size):
        batch = queries[start : start + size]
        lists += view.search(batch, TEXT, LIMIT, condition, is_reproducible=True)
    return [(list(one.ids), one.scores.tobytes()) for (one,) in lists]


def expected(rows, queries, holds=lambda n: True):
    lists = []
    for query in queries.astype(np.float64):
        scores = [np.float32(np.einsum("d,d->", v.astype(np.float64), query)) for v in rows.vectors]
        order = sorted(filter(holds, range(ROWS)), key=lambda n: (-scores[n], rows.ids[n]))[:LIMIT]
        lists.append(([rows.ids[n] for n in order], np.array([scores[n] for n in order]).tobytes()))
    return lists


@pytest.mark.parametrize("size", [1, 7, 20])
def test_a_search_finds_the_same_in_any_layout_and_any_batch(rows, queries, size, tmp_path):
    orders = np.random.default_rng(2).permutation(ROWS), np.arange(ROWS)[::-1]
    wanted = expected(rows, queries)
    assert found(view_of(rows, orders[0], 4096), queries, size) == wanted
    (tmp_path / "s").mkdir()
    assert found(view_of(rows, orders[1], 250, tmp_path / "s"), queries, size) == wanted


def test_so_does_one_with_a_filter(rows, queries):
    condition = Compare("odd", Operator.EQUAL, True)
    wanted = expected(rows, queries, lambda n: n % 2 == 1)
    assert found(view_of(rows, np.arange(ROWS), 100), queries, 7, condition) == wanted


def test_few_rows_and_none_are_no_trouble(rows, queries):
    assert found(View("c", "e", DIM, 8), queries, 7) == [([], b"")] * 20
    few = view_of(rows, np.arange(3), 2)
    assert all(len(ids) == 3 for ids, _ in found(few, queries, 7))


def test_more_copies_than_are_ever_fetched_do_not_stop_a_search(rows, queries, monkeypatch):
    monkeypatch.setattr(reproducible, "MOST", 24)
    assert all(
        len(ids) == LIMIT for ids, _ in found(view_of(rows, np.arange(ROWS), 4096), queries, 7)
    )


def test_a_query_among_many_copies_makes_no_other_of_its_batch_dearer(rows, queries, monkeypatch):
    asked, search = [], Delta.search
    monkeypatch.setattr(
        Delta, "search", lambda self, q, *rest: asked.append(len(q)) or search(self, q, *rest)
    )
    view, rounds = view_of(rows, np.arange(ROWS), 4096), []
    for query in queries:
        asked.clear()
        found(view, query[None], 1)
        rounds.append(len(asked))
    asked.clear()
    found(view, queries, len(queries))
    assert asked == [sum(one > n for one in rounds) for n in range(max(rounds))]
    assert min(rounds) < max(rounds)
