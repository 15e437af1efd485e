"""The cache of query embeddings: what is encoded, what is remembered, and what that keeps."""

from __future__ import annotations

import numpy as np
import pytest

from mmesh.content import Content
from mmesh.errors import InvalidImage, Unavailable
from mmesh.search import MergePolicy, Search
from mmesh.serving.deadline import Deadline
from services.gateway.search.queries import QueryEmbedder
from services.gateway.search.run import Run

SOON = Deadline.after(3600)


def run_for(query, model="m-1", instruction=""):
    search = Search("c", Content.of(query), instruction)
    return Run(search, SOON, 0, MergePolicy.SCORE, model=model)


async def embed(embedder, *runs):
    await embedder.embed(runs, SOON)
    return [run.embedding for run in runs]


async def test_equal_queries_of_a_batch_are_encoded_once(encoder):
    embedder = QueryEmbedder(encoder, 10)
    await embed(embedder, run_for("a"), run_for("a"), run_for("b"), run_for("a", instruction="i"))
    assert [(content.text, instruction) for content, instruction in encoder.inputs] == [
        ("a", ""),
        ("b", ""),
        ("a", "i"),
    ]


async def test_what_is_remembered_is_of_one_model(encoder):
    embedder = QueryEmbedder(encoder, 10)
    (first,) = await embed(embedder, run_for("a"))
    (again,) = await embed(embedder, run_for("a"))
    (other,) = await embed(embedder, run_for("a", model="m-2"))
    assert (first.cached, again.cached, other.cached) == (False, True, False)
    np.testing.assert_array_equal(first.vector, again.vector)


async def test_the_query_that_was_not_used_longest_is_forgotten(encoder):
    embedder = QueryEmbedder(encoder, 2)
    for query in ("a", "b", "a", "c"):
        await embed(embedder, run_for(query))
    cached = [(await embed(embedder, run_for(query)))[0].cached for query in ("a", "c", "b")]
    assert cached == [True, True, False]


@pytest.mark.parametrize("size", [0, 10])
async def test_a_remembered_vector_keeps_no_other_of_its_batch(encoder, size):
    embedder = QueryEmbedder(encoder, size)
    await embed(embedder, *(run_for(f"query {n}") for n in range(256)))
    (found,) = await embed(embedder, run_for("query 255"))
    assert found.cached == (size > 0)
    if found.cached:
        assert found.vector.base is None


async def test_a_problem_is_told_as_the_querys_and_not_remembered(encoder):
    embedder = QueryEmbedder(encoder, 10)
    for _ in range(2):
        bad, good = run_for(b"no picture"), run_for("a")
        await embed(embedder, bad, good)
        assert isinstance(bad.error, InvalidImage)
        assert bad.error.field == "query.parts[0].image.data"
        assert good.error is None
    assert encoder.calls["encode"] == 2


async def test_an_encoder_that_is_away_fails_all_who_need_it(encoder):
    embedder = QueryEmbedder(encoder, 10)
    await embed(embedder, run_for("a"))
    encoder.faults["encode"] = Unavailable("away")
    known, new = run_for("a"), run_for("b")
    await embed(embedder, known, new)
    assert known.error is None
    assert isinstance(new.error, Unavailable)
