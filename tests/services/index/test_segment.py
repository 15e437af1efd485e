"""Segments of every kind against exact search over the same rows."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesh.errors import DataLoss
from mmesh.filters import AllOf, Compare, Operator
from services.index.build.worker import build
from services.index.segments import exact, gpu, structure
from services.index.segments.delta import Delta
from services.index.segments.files import INDEX, ROWS, VECTORS
from services.index.segments.ids import hashes_of
from services.index.segments.segment import Segment
from services.index.segments.structure import Structure
from tests.effort import needs_full_effort

DIM, ROWS_OF_LARGE = 32, 20_000
CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not gpu.devices(), reason="FAISS sees no GPU here")
)
SHARES = (0, 2, 20, 50, 100)
"""Percents of rows that filters choose: none, sparse, and by the bitmap."""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    exact.single_threaded()  # others wait for each other by spinning, which a busy machine feels


def clustered(rng, n, dim=DIM, clusters=200):
    centres = np.random.default_rng(7).normal(size=(clusters, dim))
    vectors = centres[rng.integers(clusters, size=n)] + 0.7 * rng.normal(size=(n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def saved(folder, vectors):
    """Write an exact segment whose rows know their number modulo 100."""
    n = len(vectors)
    delta = Delta(vectors.shape[1], n)
    ids = [f"id{row}" for row in range(n)]
    attributes = [json.dumps({"percent": row % 100}) for row in range(n)]
    delta.append_many(ids, hashes_of(ids), attributes, vectors)
    folder.mkdir()
    delta.save(folder)
    return folder


def below(percent):
    return Compare("percent", Operator.LESS, percent)


def nearest(vectors, queries, limit, allowed):
    """Return the allowed rows that are the nearest ones of each query."""
    wanted = np.flatnonzero(allowed)
    scored = -(queries @ vectors[wanted].T)
    places = np.argpartition(scored, min(limit, len(wanted)) - 1, axis=1)[:, :limit]
    return wanted[places]


def recall(segment, vectors, queries, limit, allowed, condition=None, nearest=nearest):
    """Return the recall, after checking that what came back is right and enough."""
    scores, rows = segment.search(queries, limit, condition)
    wanted = np.flatnonzero(allowed)
    assert rows.shape == (len(queries), min(limit, len(wanted)))
    assert (rows >= 0).all()
    assert allowed[rows].all()
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    assert all(len(set(row)) == len(row) for row in rows.tolist())
    if not len(wanted):
        return 1.0
    found = zip(nearest(vectors, queries, limit, allowed), rows, strict=True)
    return sum(len(np.intersect1d(*both)) for both in found) / rows.size


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    vectors = clustered(np.random.default_rng(0), ROWS_OF_LARGE)
    return saved(folder / "flat", vectors), vectors


@pytest.fixture(scope="module")
def nearest_once():
    """`nearest`, which is the same for every kind of segment of the same rows."""
    known = {}

    def look_up(vectors, queries, limit, allowed):
        key = id(vectors), queries.tobytes(), limit, allowed.tobytes()
        if key not in known:
            known[key] = nearest(vectors, queries, limit, allowed)
        return known[key]

    return look_up


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(
    ("index_factory", "floor"),
    [
        ("", 0.97),
        ("Flat", 1.0),
        ("SQfp16", 0.98),
        ("IVF64,SQ8", 0.93),
        ("IVF64,Flat", 0.95),
        ("HNSW8", 0.93),
        ("PQ16x4fs,Refine(SQfp16)", 0.95),
        (f"RR{DIM},RaBitQfs,Refine(SQfp16)", 0.9),
        pytest.param("OPQ8_16,IVF64,PQ8x4fs,RFlat", 0.9, marks=needs_full_effort),
    ],
)
def test_every_kind_finds_enough_of_what_lives_and_matches(
    large, nearest_once, tmp_path, index_factory, floor, device
):
    flat, vectors = large
    order = {"inputs": [{"folder": str(flat)}], "output": str(tmp_path / "new")}
    about = build({**order, "index_factory": index_factory, "recall_target": 0.97})
    segment = Segment.open(tmp_path / "new", device)
    assert about.index_factory == (index_factory or f"IVF256,PQ{DIM // 2}x4fs,Refine(SQfp16)")
    queries = clustered(np.random.default_rng(1), 400)
    numbers = np.arange(len(vectors))
    for dead in (0, 100, 12_000):
        segment.kill(numbers[:dead])
        alive = numbers >= dead
        assert recall(segment, vectors, queries, 10, alive, None, nearest_once) >= floor
        for share in SHARES:
            allowed = alive & (numbers % 100 < share)
            found = recall(segment, vectors, queries, 10, allowed, below(share), nearest_once)
            assert found >= floor
    assert recall(segment, vectors, queries[:1], 500, alive) > 0.5
    np.testing.assert_allclose(segment.vectors(numbers[:50]), vectors[:50], atol=1e-3)


@given(
    st.integers(1, 70),
    st.sets(st.integers(0, 69)),
    st.integers(0, 100),
    st.integers(1, 80),
    st.integers(1, 4),
)
@pytest.mark.parametrize("index_factory", ["Flat", "IVF4,PQ4x4fs,Refine(SQfp16)", "PQ4x4fs"])
def test_as_many_are_found_as_there_are(
    tmp_path_factory, index_factory, rows, dead, share, limit, m
):
    folder = tmp_path_factory.mktemp("small")
    vectors = clustered(np.random.default_rng(rows), rows * 10, dim=8)
    order = {"inputs": [{"folder": str(saved(folder / "flat", vectors))}]}
    build({**order, "output": str(folder / "new"), "index_factory": index_factory})
    segment = Segment.open(folder / "new")
    segment._few = 0  # so small a segment would be searched exactly
    numbers = np.arange(len(vectors))
    segment.kill(np.array([row for row in dead if row < len(vectors)], np.int64))
    alive = ~np.isin(numbers, list(dead))
    queries = clustered(np.random.default_rng(1), m, dim=8)
    recall(segment, vectors, queries, limit, alive)
    recall(segment, vectors, queries, limit, alive & (numbers % 100 < share), below(share))


def test_rows_that_die_during_a_search_are_found_or_not_but_nothing_breaks(large, tmp_path):
    flat, vectors = large
    build({"inputs": [{"folder": str(flat)}], "output": str(tmp_path / "new")})
    segment = Segment.open(tmp_path / "new")
    selected = segment._structure.search

    def search_while_rows_die(queries, limit, **options):
        scores, rows = selected(queries, limit, **options)
        segment.kill(rows[:, 0])
        return scores, rows

    segment.kill(np.arange(3))
    segment._structure.search = search_while_rows_die
    scores, rows = segment.search(vectors[100:105], 10)
    assert (rows >= 0).all()
    assert (np.diff(scores, axis=1) <= 0).all()


def test_living_rows_are_taken_over_as_bits(large):
    segment, other = (Segment.open(large[0]) for _ in range(2))
    segment.kill(np.array([0, 5, 5, ROWS_OF_LARGE - 1]))
    segment.kill(np.array([5]))
    assert segment.dead == 3
    other.set_alive(segment.alive_bits())
    assert other.dead == 3
    assert other.alive_bits() == segment.alive_bits()
    with pytest.raises(DataLoss):
        other.set_alive(b"\xff")


def test_rows_are_known_by_id_and_outlive_their_folder(tmp_path):
    vectors = clustered(np.random.default_rng(0), 300)
    folder = saved(tmp_path / "flat", vectors)
    segment = Segment.open(folder)
    for path in folder.iterdir():
        path.unlink()
    asked = ["id7", "absent", "id299"]
    rows = segment.find(hashes_of(asked), asked)
    assert rows.tolist() == [7, -1, 299]
    assert segment.ids(rows[[0, 2]]) == ["id7", "id299"]
    assert [json.loads(text)["percent"] for text in segment.attributes(rows[[0, 2]])] == [7, 99]
    assert set(segment.memory()) == {"vectors", "ids", "attributes", "columns"}
    assert segment.memory()["vectors"] >= vectors.nbytes


def test_a_filter_and_its_parts_agree(large):
    segment, vectors = Segment.open(large[0]), large[1]
    both = AllOf((below(30), Compare("percent", Operator.GREATER_OR_EQUAL, 10)))
    _, rows = segment.search(vectors[:5], 20, both)
    assert ((rows % 100 >= 10) & (rows % 100 < 30)).all()


def test_a_structure_is_asked_for_no_more_than_it_gives(tmp_path, monkeypatch):
    segment = Segment.open(saved(tmp_path / "s", clustered(np.random.default_rng(3), 1000)))
    asked, search = [], Structure.search
    monkeypatch.setattr(
        Structure,
        "search",
        lambda self, q, n, **more: asked.append(n) or search(self, q, n, **more),
    )
    queries = clustered(np.random.default_rng(4), 3)
    wanted = segment.search(queries, 300, below(80))
    assert asked == [500]  # all rows are searched for what is left with those left out
    monkeypatch.setattr(structure, "MAX_LIMIT", 400)
    np.testing.assert_array_equal(segment.search(queries, 300, below(80))[1], wanted[1])
    assert max(asked[1:], default=0) <= 400


@pytest.fixture
def damaged(tmp_path):
    vectors = clustered(np.random.default_rng(0), 1000)
    flat = saved(tmp_path / "flat", vectors)
    order = {"inputs": [{"folder": str(flat)}], "output": str(tmp_path / "new")}
    build({**order, "index_factory": "SQ8"})
    return tmp_path


@pytest.mark.parametrize("name", ["segment.json", INDEX, ROWS, VECTORS])
@pytest.mark.parametrize("damage", ["missing", "short", "empty", "garbage"])
def test_a_damaged_file_is_data_loss(damaged, name, damage):
    path = damaged / "new" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        half = len(content) // 2
        broken = {"short": content[:half], "empty": b"", "garbage": b"\xa5" * len(content)}
        path.write_bytes(broken[damage])
    with pytest.raises(DataLoss):
        Segment.open(damaged / "new")


@pytest.mark.parametrize("name", ["segment.json", INDEX, ROWS])
def test_a_file_of_another_segment_is_data_loss(damaged, tmp_path, name):
    other = saved(tmp_path / "small", clustered(np.random.default_rng(0), 400))
    (damaged / "new" / name).write_bytes((other / name).read_bytes())
    with pytest.raises(DataLoss):
        Segment.open(damaged / "new")


def test_a_byte_that_flipped_among_the_rows_is_data_loss(damaged):
    path = damaged / "new" / ROWS
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataLoss):
        Segment.open(damaged / "new")
