"""Which structure a segment gets, which are refused, and that tuning keeps its word."""

import faiss
import numpy as np
import pytest

from services.index.build import tuning
from services.index.build.tuning import automatic_factory, check_factory, wanted_factory
from services.index.segments import exact
from services.index.segments.structure import MEASURED_LIMIT, Structure


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    exact.single_threaded()  # others wait for each other by spinning, which a busy machine feels


@pytest.mark.parametrize(
    ("rows", "dim", "index_factory"),
    [
        (0, 384, "Flat"),
        (19_999, 384, "Flat"),
        (20_000, 384, "IVF256,PQ192x4fs,Refine(SQfp16)"),
        (250_000, 384, "IVF1024,PQ192x4fs,Refine(SQfp16)"),
        (1_000_000, 1024, "IVF2048,PQ512x4fs,Refine(SQfp16)"),
        (250_000, 9, "IVF1024,SQ8,Refine(SQfp16)"),
        (250_000, 385, "IVF1024,SQ8,Refine(SQfp16)"),
        (250_000, 8, "IVF1024,SQ8,Refine(SQfp16)"),
    ],
)
def test_the_structure_follows_the_number_of_rows(rows, dim, index_factory):
    assert automatic_factory(rows, dim) == index_factory
    check_factory(index_factory, dim)


def test_a_gpu_gets_structures_that_it_can_search():
    assert automatic_factory(250_000, 384, "cuda") == "IVF1024,SQfp16"


@pytest.mark.parametrize(
    ("index_factory", "enough"),
    [
        ("IVF64,Flat", 64 * 39),
        ("IVF64,PQ4x4fs", 64 * 39),
        ("PQ4", 256 * 39),
        ("OPQ4_8,PQ4x4fs", 16 * 39),
        ("HNSW16", 1),
        ("SQ8", 1000),
        ("IVF64,SQ8", 64 * 39),
        ("SQfp16", 1),
    ],
)
def test_too_few_rows_to_train_are_searched_exactly(index_factory, enough):
    assert wanted_factory(index_factory, enough, 8) == index_factory
    assert wanted_factory(index_factory, enough - 1, 8) == "Flat"


def sample_of(vectors, queries, own_rows):
    scores, rows = exact.search_all(queries, vectors, MEASURED_LIMIT + 2)
    return tuning.sample_of(queries, own_rows, rows, scores, lambda some: vectors[some])


def test_of_copies_of_one_vector_any_is_as_good_as_another():
    """Three in a hundred rows are one placeholder; to find all of them took every list."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(20_000, 16)).astype("f4")
    vectors[::33] = vectors[0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = faiss.index_factory(16, "IVF128,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    structure, own = Structure(index), np.arange(0, 20_000, 66)  # copies, all of them
    found = tuning.tune(structure, sample_of(vectors, vectors[own], own), 0.95)
    assert (found.effort, found.recall) == (1, 1.0)


@pytest.fixture(scope="module")
def trained():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(400, 16))
    vectors = (centres[rng.integers(400, size=30_000)] + rng.normal(size=(30_000, 16))).astype("f4")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = faiss.index_factory(16, "IVF128,PQ8x4fs,Refine(SQfp16)", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    return index, vectors


@pytest.mark.parametrize("target", [0.8, 0.9, 0.97, 0.99])
def test_other_queries_reach_the_target_too(trained, target):
    index, vectors = trained
    rows = np.random.default_rng(1).permutation(len(vectors))
    samples = [sample_of(vectors, vectors[own], own) for own in (rows[:400], rows[400:2400])]
    structure = Structure(index)
    tuned = tuning.tune(structure, samples[0], target)
    assert tuned.recall > target
    held_out = tuning.recalls_of(structure, samples[1], tuned.effort).mean()
    assert target - 0.002 <= held_out
    assert tuning.recalls_of(structure, samples[1], tuned.effort // 2).mean() < held_out


@pytest.mark.parametrize(("target", "depth"), [(0.7, 60), (0.8, 100), (0.95, 400)])
def test_as_many_rows_are_scored_anew_as_the_target_needs(trained, target, depth):
    index, vectors = trained
    own = np.random.default_rng(1).permutation(len(vectors))[:1000]
    sample, structure = sample_of(vectors, vectors[own], own), Structure(index)
    structure.set_depth(1_000)  # what it was before does not matter
    tuned = tuning.tune(structure, sample, target)
    assert (tuned.depth, structure.depth) == (depth, depth)
    assert tuning.recalls_of(structure, sample, tuned.effort).mean() == tuned.recall > target


def test_a_target_out_of_reach_is_told_by_the_recall():
    vectors = np.random.default_rng(0).normal(size=(5_000, 16)).astype(np.float32)
    index = faiss.index_factory(16, "IVF16,PQ4x4fs", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    own = np.arange(100)
    tuned = tuning.tune(Structure(index), sample_of(vectors, vectors[:100], own), 0.99)
    assert tuned.effort == 16
    assert 0.1 < tuned.recall < 0.9


def test_a_row_is_no_hit_of_itself():
    rows = np.array([[3, 1, 2], [0, 1, 2]])
    found = tuning.without_own(rows, np.array([3, -1])).tolist()
    assert found == [[1, 2, -1], [0, 1, 2]]
