"""Searches of one call: each succeeds or fails on its own, and together they stay within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

import pytest

from mmesh.candidates import Candidate
from mmesh.collections import Collection
from mmesh.content import Content, Modality
from mmesh.errors import DeadlineExceeded, InvalidField, ModelMismatch
from mmesh.search import Consistency, Search
from mmesh.serving.deadline import Deadline
from mmesh.values.tokens import Token
from mmesh.wire.search import result_to_pb
from services.gateway.catalog import Catalog
from services.gateway.config import GatewaySettings
from services.gateway.fair_gate import Caller
from services.gateway.search import pipeline as pipelines
from services.gateway.search.merge import merge
from services.gateway.search.pipeline import Pipeline
from tests.services.gateway.conftest import DIM, FakeEncoder, FakeIndex, FakeReranker

CAT, DOG = Content.of("a cat"), Content.of("a dog")


def soon():
    return Deadline.after(10)


def text_search(query=CAT, **options):
    return Search("photos", query, target=Modality.TEXT, **options)


class OfFew(FakeIndex):
    """Refuses more than five hits, as a collection with such a limit does."""

    async def prepare(self, order, deadline):
        if order.limit > 5:
            raise InvalidField("limit", f"is {order.limit}; 1 to 5 are allowed")
        return await super().prepare(order, deadline)


async def test_a_limit_that_is_too_high_is_the_fault_of_its_search_alone():
    index = OfFew()
    index.hold(text={f"c{n}": 0.9 - n / 100 for n in range(9)})
    pipeline = Pipeline(FakeEncoder(), index, Catalog(index), FakeReranker(), GatewaySettings())
    searches = [text_search(CAT, limit=5), text_search(DOG, limit=6)]
    good, refused = await pipeline.search_batch(searches, soon())
    assert len(good.hits) == 5
    assert isinstance(refused, InvalidField)


async def test_searches_that_may_find_very_many_hits_are_ordered_in_parts(monkeypatch):
    class Counting(FakeIndex):
        running = most = 0

        async def prepare(self, order, deadline):
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0.001)
            self.running -= 1
            return await super().prepare(order, deadline)

    monkeypatch.setattr(pipelines, "MOST_HITS_AN_ORDER", 40)
    monkeypatch.setattr(pipelines, "WIDE_HITS", 20)
    index = Counting()
    index.hold(text={f"c{n}": 0.9 - n / 100 for n in range(9)})
    pipeline = Pipeline(FakeEncoder(), index, Catalog(index), None, GatewaySettings())
    searches = [text_search(Content.of(f"cat {n}"), limit=10) for n in range(14)]
    found = await pipeline.search_batch(searches, soon())
    assert [len(one.hits) for one in found] == [9] * 14
    assert sorted(len(order.queries) for order in index.orders) == [2, 4, 4, 4]
    assert index.most <= pipelines.WIDE_AT_A_TIME + 1  # the last one is not wide


class MadeAnew(FakeIndex):
    """Its one collection has had another model since `live` was looked up."""

    models: Mapping[str, str] = MappingProxyType({"photos": "new", "live": "old"})

    async def get_collection(self, name, deadline):
        now = datetime.now(UTC)
        return Collection("photos", DIM, self.models[name], {}, self.shard_count, now, "e:10")

    async def prepare(self, order, deadline):
        if order.model_fingerprint != "new":
            raise ModelMismatch("the collection is of the model 'new'")
        return await super().prepare(order, deadline)


async def test_vectors_of_two_models_never_share_a_search():
    index = MadeAnew()
    index.hold(text={"a": 0.9})
    catalog = Catalog(index)
    pipeline = Pipeline(FakeEncoder(), index, catalog, None, GatewaySettings())
    await catalog.get("live", soon())
    index.models = {"photos": "new", "live": "new"}
    searches = [text_search(CAT), replace(text_search(DOG), collection="live")]
    found = await pipeline.search_batch(searches, soon())
    assert [one.receipt.encoder_fingerprint for one in found] == ["new", "new"]
    await catalog.close()


class Aliased(FakeIndex):
    """Its alias has been moved since the catalog looked."""

    epochs: Mapping[str, str] = MappingProxyType({"photos": "e", "copy": "f"})

    async def get_collection(self, name, deadline):
        found = await super().get_collection(name, deadline)
        return replace(found, token=f"{self.epochs[found.name]}:10")


@pytest.mark.parametrize(
    ("token", "consistency", "searched"),
    [
        ("f:10", None, "copy"),
        ("f:10", Consistency.SESSION, "copy"),
        ("f:10", Consistency.EVENTUAL, "photos"),
        ("e:10", None, "photos"),
        ("", None, "photos"),
    ],
)
async def test_a_search_that_names_a_write_sees_where_the_alias_led_it(
    token, consistency, searched
):
    index = Aliased(names={"live": "photos", "photos": "photos", "copy": "copy"})
    index.hold(text={"a": 0.9})
    catalog = Catalog(index)
    pipeline = Pipeline(FakeEncoder(), index, catalog, None, GatewaySettings())
    await catalog.get("live", soon())
    index.names["live"] = "copy"
    index.token = Token("f", 10)
    search = Search("live", CAT, target=Modality.TEXT, token=token, consistency=consistency)
    await pipeline.search(search, soon())
    assert [order.collection for order in index.orders] == [searched]
    await catalog.close()


async def test_a_turn_that_does_not_come_in_time_is_told_at_once():
    index, encoder = FakeIndex(), FakeEncoder()
    index.hold(text={"a": 0.9})
    hang = encoder.hang("encode")
    pipeline = Pipeline(encoder, index, Catalog(index), None, GatewaySettings(max_searching=1))
    first = asyncio.create_task(pipeline.search(text_search(), Deadline.after(60), Caller("a")))
    await hang.begun.wait()
    with pytest.raises(DeadlineExceeded, match="before it was its turn"):
        await pipeline.search(text_search(DOG), Deadline.after(0.05), Caller("a"))
    assert not first.done()
    hang.free.set()
    assert (await first).hits


async def test_contents_that_do_not_fit_into_one_answer_are_left_out():
    index = FakeIndex()
    index.hold(text={f"c{n}": 0.9 - n / 100 for n in range(4)})
    index.stored = {one: Candidate(one, Content.of("x" * 1000)) for one in index.stored}
    settings = GatewaySettings(max_message_bytes=11_000)
    pipeline = Pipeline(FakeEncoder(), index, Catalog(index), None, settings)
    searches = [text_search(Content.of(f"q{n}"), limit=4, include_content=True) for n in range(3)]
    found = await pipeline.search_batch(searches, soon())
    whole = [sum(hit.content is not None for hit in one.hits) for one in found]
    reasons = [[degraded.reason for degraded in one.degradations] for one in found]
    assert sorted(whole) == [0, 4, 4]
    assert [reason == ["CONTENT_UNAVAILABLE"] for reason in reasons] == [not one for one in whole]
    assert [len(one.hits) for one in found] == [4, 4, 4]


async def test_many_hits_without_content_leave_less_room_for_contents():
    """The hits of a batch come to more than what a message has left beside its contents."""
    index = FakeIndex()
    index.hold(text={f"c{n:03}": 0.9 - n / 1000 for n in range(100)})
    index.stored = {one: Candidate(one, Content.of("x" * 900)) for one in index.stored}
    settings = GatewaySettings(max_message_bytes=100_000)
    pipeline = Pipeline(FakeEncoder(), index, Catalog(index), None, settings)
    searches = [
        text_search(Content.of(f"q{n}"), limit=100, include_content=n == 0) for n in range(4)
    ]
    found = [result_to_pb(one) for one in await pipeline.search_batch(searches, soon())]
    assert sum(one.ByteSize() for one in found) < 100_000
    assert [hit.HasField("content") for hit in found[0].hits[:40]] == [True] * 40


async def test_between_two_searches_of_a_batch_the_event_loop_sees_to_others():
    index = FakeIndex()
    index.hold(text={f"c{n}": 0.9 - n / 1e4 for n in range(100)})
    pipeline = Pipeline(FakeEncoder(), index, Catalog(index), None, GatewaySettings())
    merged_in: list[int] = []
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    class Noting(list):
        def __init__(self, ranked):
            super().__init__(ranked)
            merged_in.append(turns)

    beside = asyncio.create_task(others())
    searches = [text_search(Content.of(f"q{n}"), limit=100) for n in range(20)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines, "merge", lambda *given: Noting(merge(*given)))
        await pipeline.search_batch(searches, soon())
    beside.cancel()
    assert len(set(merged_in)) == len(merged_in) == 20, "one merge in a turn of the loop"
