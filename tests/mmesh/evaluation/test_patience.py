"""Calls that are repeated, and split: each item has the outcome that it would have alone."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from mmesh import wire
from mmesh.content import Content
from mmesh.errors import DeadlineExceeded, MmeshError, Unavailable
from mmesh.evaluation.datasets.dataset import Query, Task
from mmesh.evaluation.live import patience
from mmesh.evaluation.live.patience import PatientCalls, PatientSearches
from mmesh.evaluation.live.searching import Plan
from mmesh.evaluation.options import Effort, Options
from mmesh.filters import MAX_VALUES, AllOf, In, check_filter
from mmesh.wire.search import search_from_pb, search_to_pb

TASK = Task("task", "", "", ("hit@10",))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(patience, "_PAUSE_S", 0.0)


async def outcomes_of(*script: MmeshError) -> list[object]:
    """Return the outcomes of two items when calls fail like this before they succeed."""
    failures = list(script)

    async def call(items):
        if failures:
            raise failures.pop(0)
        return [f"answer to {item}" for item in items]

    return await PatientCalls(call, Effort()).outcomes(["a", "b"])


async def test_only_missed_deadlines_count_as_missed_deadlines():
    away, late = Unavailable("restarting"), DeadlineExceeded("cold caches")
    assert await outcomes_of(away, away, late, away, late) == ["answer to a", "answer to b"]
    assert await outcomes_of(late, away, late, late) == [late, late]


async def test_time_in_which_nothing_was_asked_is_no_time_without_an_answer():
    failures: list[MmeshError] = []

    async def call(items):
        if failures:
            raise failures.pop()
        return items

    calls = PatientCalls(call, Effort(patience_s=0.05))
    assert await calls.outcomes(["a"]) == ["a"]
    await asyncio.sleep(0.1)
    failures.append(Unavailable("restarting"))
    assert await calls.outcomes(["b"]) == ["b"]


class Gateway:
    """Reads the searches of a batch as the gateway does, and answers with the batch's size."""

    async def search_batch(self, searches, *, timeout):
        read = partial(search_from_pb, filter_of=wire.FilterReader())
        for search in searches:
            read(search_to_pb(search))
        return [len(searches)] * len(searches)


@pytest.mark.parametrize(("documents", "most"), [(7, 32), (256, 31), (1000, 8), (4096, 1)])
async def test_searches_among_many_documents_are_sent_in_batches_that_are_taken(documents, most):
    plan = Plan("c", "", TASK, Options(), ())
    queries = (
        Query(f"q{n}", "x", None, "", among=tuple(f"{n}-{i}" for i in range(documents)))
        for n in range(32)
    )
    searches = [one for query in queries for one in plan.searches(query, Content.of("x"))]
    sizes = await PatientSearches(Gateway(), Effort()).outcomes(searches)
    assert most / 2 <= max(sizes) <= most


def test_more_documents_than_a_filter_takes_are_searched_in_parts():
    among = tuple(map(str, range(10_000)))
    plan = Plan("c", "", TASK, Options(), ("pool", "other"))
    searches = plan.searches(Query("q", "x", None, "", among=among), Content.of("x"))
    found: list[str] = []
    for search in searches:
        check_filter(search.filter)
        assert isinstance(search.filter, AllOf)
        pools, ids = search.filter.filters
        assert isinstance(pools, In)
        assert pools.values == ("pool", "other")
        assert isinstance(ids, In)
        found += ids.values
    assert tuple(found) == among
    assert len(searches) == -(-len(among) // (MAX_VALUES - 2))
