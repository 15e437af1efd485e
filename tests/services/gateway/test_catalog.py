import asyncio
from datetime import UTC, datetime

import pytest

from mmesh.collections import Collection
from mmesh.errors import CollectionNotFound, DeadlineExceeded, LogUnavailable
from mmesh.serving.deadline import Deadline
from services.gateway.catalog import Catalog

SOON = Deadline.after(3600)


class Index:
    """Has one collection, "c" in its newest form, and says how often it was asked."""

    def __init__(self):
        self.asked, self.model, self.failure = 0, "m-1", None
        self.begun, self.held = asyncio.Event(), asyncio.Event()
        self.held.set()

    async def get_collection(self, name, deadline):
        self.asked += 1
        model = self.model
        self.begun.set()
        await self.held.wait()
        if self.failure:
            raise self.failure
        return Collection(name, 4, model, {}, 1, datetime.now(UTC), "e:1")


@pytest.fixture
async def index():
    return Index()


@pytest.fixture
async def open_catalog(index):
    """Make catalogs whose entries are fresh for so many seconds."""
    opened = []

    def make(fresh_s=3600.0):
        opened.append(Catalog(index, fresh_s))
        return opened[-1]

    yield make
    for catalog in opened:
        await catalog.close()


async def test_those_who_ask_at_a_time_share_one_call_and_later_ones_need_none(index, open_catalog):
    catalog = open_catalog()
    found = await asyncio.gather(*(catalog.get("c", SOON) for _ in range(20)))
    found.append(await catalog.get("c", SOON))
    assert {one.model_fingerprint for one in found} == {"m-1"}
    assert index.asked == 1


async def test_what_is_not_fresh_any_more_is_asked_again(index, open_catalog):
    catalog = open_catalog(fresh_s=0.0)
    await catalog.get("c", SOON)
    index.model = "m-2"
    assert (await catalog.get("c", SOON)).model_fingerprint == "m-2"


async def test_what_was_asked_before_it_was_forgotten_is_not_remembered(index, open_catalog):
    catalog = open_catalog()
    index.held.clear()
    before = asyncio.create_task(catalog.get("c", SOON))
    await index.begun.wait()
    catalog.forget()
    index.model = "m-2"
    index.held.set()
    assert (await before).model_fingerprint == "m-1"
    assert (await catalog.get("c", SOON)).model_fingerprint == "m-2"


async def test_while_the_log_is_away_what_was_known_serves(index, open_catalog):
    catalog = open_catalog(fresh_s=0.0)
    await catalog.get("c", SOON)
    index.failure = LogUnavailable("away")
    assert (await catalog.get("c", SOON)).model_fingerprint == "m-1"
    with pytest.raises(LogUnavailable):
        await catalog.get("unknown", SOON)
    index.held.clear()  # by now it does not answer at all
    assert (await catalog.get("c", SOON)).model_fingerprint == "m-1"
    with pytest.raises(DeadlineExceeded):
        await catalog.get("unknown", Deadline.after(0.01))


async def test_a_collection_that_is_gone_is_not_known_any_more(index, open_catalog):
    catalog = open_catalog(fresh_s=0.0)
    await catalog.get("c", SOON)
    index.failure = CollectionNotFound("c")
    with pytest.raises(CollectionNotFound):
        await catalog.get("c", SOON)
