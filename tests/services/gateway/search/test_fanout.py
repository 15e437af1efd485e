"""Joining the answers of shards, above all when they do not answer from the same collection."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime

import numpy as np
import pytest

from mmesh.collections import Collection
from mmesh.content import Modality
from mmesh.errors import (
    CollectionNotFound,
    DataLoss,
    DeadlineExceeded,
    InternalError,
    MessageTooLarge,
    ModelMismatch,
    Overloaded,
    ShardUnavailable,
    StaleReplica,
    Unavailable,
)
from mmesh.search import Consistency
from mmesh.serving.deadline import Deadline
from mmesh.values.tokens import Token
from mmesh.vector_search import VectorSearch
from services.gateway.interfaces import Scored, ShardAnswer
from services.gateway.search.fanout import search_shards
from tests.effort import patient

TEXT = Modality.TEXT
SOON = Deadline.after(3600)


def order_for(collection="alias"):
    queries = np.eye(1, 4, dtype=np.float32)
    return VectorSearch(collection, queries, "m", (TEXT,), 10, None, Consistency.EVENTUAL, "")


class Index:
    """Shards whose answers are scripted: for each search, the epoch or the error of every shard.

    The last line of the script holds for all further searches. Hits are named after what they
    come from: "epoch/shard".
    """

    def __init__(self, *script, names="real", newest="e2"):
        self.script, self.names, self.newest = list(script), names, newest
        self.searched, self.prepared, self.asked = [], 0, Counter()

    async def prepare(self, order, deadline):
        self.searched.append(order.collection)
        self.prepared += 1
        return _Prepared(self.script[min(self.prepared, len(self.script)) - 1])

    async def get_collection(self, name, deadline):
        self.asked[name] += 1
        if isinstance(self.names, Exception):
            raise self.names
        now = datetime.now(UTC)
        return Collection(self.names, 4, "m", {}, 2, now, f"{self.newest}:9")


class _Prepared:
    def __init__(self, line):
        self.line, self.shard_count = line, len(line)

    async def search(self, shard, deadline):
        outcome = self.line[shard]
        if isinstance(outcome, Exception):
            raise outcome
        hit = Scored(f"{outcome}/{shard}", TEXT, 0.5, {})
        return ShardAnswer([[[hit]]], Token(outcome, shard + 1), 0.0)


def ids_of(found):
    return [hit.id for hit in found.lists[0][TEXT]]


async def test_shards_that_agree_are_asked_once():
    index = Index(["e1", "e1", "e1"])
    found = await search_shards(index, order_for(), SOON)
    assert ids_of(found) == ["e1/0", "e1/1", "e1/2"]
    assert (str(found.token), found.answered, found.total, dict(found.missing)) == (
        "e1:3",
        3,
        3,
        {},
    )
    assert (index.searched, index.asked) == (["alias"], {})


async def test_shards_that_disagree_are_searched_again_by_the_real_name():
    index = Index(["e1", "e2"], ["e2", "e2"])
    found = await search_shards(index, order_for(), SOON)
    assert ids_of(found) == ["e2/0", "e2/1"]
    assert index.searched == ["alias", "real"]
    assert (found.answered, dict(found.missing)) == (2, {})


async def test_shards_that_go_on_disagreeing_are_left_out_but_for_those_that_are_right():
    index = Index(["e1", "e2", "e1"])
    found = await search_shards(index, order_for(), SOON)
    assert ids_of(found) == ["e2/1"]
    assert (found.answered, found.total, set(found.missing)) == (1, 3, {0, 2})
    assert all(isinstance(error, StaleReplica) for error in found.missing.values())
    assert index.prepared == 3


async def test_when_no_shard_has_the_collection_of_the_log_nothing_is_merged():
    with pytest.raises(StaleReplica):
        await search_shards(Index(["e1", "e2"], newest="e3"), order_for(), SOON)


@pytest.mark.parametrize("error", [Unavailable, DataLoss, InternalError, Overloaded])
async def test_shards_that_fail_do_not_count_as_disagreeing(error):
    index = Index(["e1", error("gone")])
    found = await search_shards(index, order_for(), SOON)
    assert (ids_of(found), set(found.missing), index.prepared) == (["e1/0"], {1}, 1)


async def test_an_answer_that_is_too_large_is_the_fault_of_the_search():
    with pytest.raises(MessageTooLarge):
        await search_shards(Index(["e1", MessageTooLarge("ask for fewer")]), order_for(), SOON)


async def test_an_alias_that_is_deleted_meanwhile_is_an_error():
    index = Index(["e1", "e2"], names=CollectionNotFound("alias"))
    with pytest.raises(CollectionNotFound):
        await search_shards(index, order_for(), SOON)


async def test_disagreeing_shards_do_not_keep_a_search_beyond_its_deadline():
    class Slow(Index):
        async def get_collection(self, name, deadline):
            deadline.check()
            return await super().get_collection(name, deadline)

    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await search_shards(Slow(["e1", "e2"]), order_for(), Deadline.after(0.0))
    assert time.monotonic() - start < patient(0.5)


@pytest.mark.parametrize(
    ("outcomes", "error"),
    [
        ([], ShardUnavailable),
        ([Unavailable("a"), Unavailable("b")], ShardUnavailable),
        ([StaleReplica("a"), Unavailable("b")], StaleReplica),
        ([Overloaded("a"), Unavailable("b")], Overloaded),
        (["e1", ModelMismatch("a")], ModelMismatch),
    ],
)
async def test_what_no_shard_can_answer_is_an_error(outcomes, error):
    with pytest.raises(error):
        await search_shards(Index(outcomes), order_for(), SOON)
