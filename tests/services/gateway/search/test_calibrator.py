import asyncio

import numpy as np
import pytest

from mmesh.content import Modality
from mmesh.errors import Unavailable
from mmesh.serving.deadline import Deadline
from mmesh.tokens import Token
from services.gateway.interfaces import Scored, ServedModel, ShardAnswer
from services.gateway.search.calibrator import RETRY_S, Calibrator

TEXT, IMAGE, PAIR = Modality
SOON = Deadline.after(3600)


class Encoder:
    """Has two calibration queries for texts."""

    async def model(self, fingerprint, deadline):
        queries = {TEXT: np.eye(2, dtype=np.float32)}
        return ServedModel("m", "m-1", 2, queries)


class Index:
    """Answers every query with the same scores, as often as it is let."""

    shard_count = 1

    def __init__(self, *scores_by_query, failures=0):
        self.scores, self.failures, self.searches = scores_by_query, failures, 0

    async def prepare(self, order, deadline):
        return self

    async def search(self, shard, deadline):
        self.searches += 1
        await asyncio.sleep(0.01)
        if self.failures:
            self.failures -= 1
            raise Unavailable("away")
        lists = [
            [[Scored("t", TEXT, one[0], {})], [Scored("i", IMAGE, one[1], {})], []]
            if one
            else [[], [], []]
            for one in self.scores
        ]
        return ShardAnswer(lists, Token("e", 10), 0.0)


async def test_scales_come_from_the_first_hits_of_each_modality():
    calibrator = Calibrator(Encoder(), Index((0.8, 0.3), (0.6, 0.1)))
    found = await calibrator.get("c", "m-1", Token("e", 10), TEXT, SOON)
    assert found.scales[TEXT].mean == pytest.approx(0.7)
    assert found.scales[IMAGE].mean == pytest.approx(0.2)
    assert PAIR not in found.scales


async def test_a_query_that_is_in_the_collection_is_no_scale():
    calibrator = Calibrator(Encoder(), Index((1.0, 0.9), (0.6, 0.1)))
    found = await calibrator.get("c", "m-1", Token("e", 10), TEXT, SOON)
    assert found.scales[TEXT].mean == pytest.approx(0.6)
    assert found.scales[IMAGE].mean == pytest.approx(0.1)


async def test_searches_at_a_time_share_one_fit_and_later_ones_remember_it():
    index = Index((0.8, 0.3), (0.6, 0.1))
    calibrator = Calibrator(Encoder(), index)
    await asyncio.gather(
        *(calibrator.get("c", "m-1", Token("e", 10), TEXT, SOON) for _ in range(5))
    )
    await calibrator.get("c", "m-1", Token("e", 100), TEXT, SOON)
    assert index.searches == 1


async def test_a_collection_that_has_outgrown_its_calibration_is_fitted_again_meanwhile():
    index = Index((0.8, 0.3), (0.6, 0.1))
    calibrator = Calibrator(Encoder(), index)
    first = await calibrator.get("c", "m-1", Token("e", 10), TEXT, SOON)
    index.scores = ((0.5, 0.3), (0.5, 0.1))
    assert await calibrator.get("c", "m-1", Token("e", 1000), TEXT, SOON) is first
    await asyncio.sleep(0.1)
    assert await calibrator.get("c", "m-1", Token("e", 1000), TEXT, SOON) is not first


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


async def test_a_failed_fit_is_none_and_not_begun_again_before_a_while():
    index, clock = Index((0.8, 0.3), (0.6, 0.1), failures=1), Clock()
    calibrator = Calibrator(Encoder(), index, clock)
    for _ in range(100):
        assert await calibrator.get("c", "m-1", Token("e", 10), TEXT, SOON) is None
        clock.now += RETRY_S / 101
    assert index.searches == 1
    clock.now += RETRY_S
    assert await calibrator.get("c", "m-1", Token("e", 10), TEXT, SOON) is not None


async def test_an_outgrown_calibration_serves_while_new_fits_fail():
    index, clock = Index((0.8, 0.3), (0.6, 0.1)), Clock()
    calibrator = Calibrator(Encoder(), index, clock)
    first = await calibrator.get("c", "m-1", Token("e", 10), TEXT, SOON)
    index.failures = 100
    for _ in range(10):
        assert await calibrator.get("c", "m-1", Token("e", 1000), TEXT, SOON) is first
        await asyncio.sleep(0.02)
    assert index.searches == 2


async def test_a_collection_without_hits_is_not_fitted_for_each_search():
    index = Index(None, None)
    calibrator = Calibrator(Encoder(), index)
    for _ in range(5):
        assert await calibrator.get("c", "m-1", Token("e", 10), TEXT, SOON) is None
    assert index.searches == 1


async def test_a_defect_in_a_fit_costs_the_calibration_only(caplog):
    class Broken(Index):
        async def prepare(self, order, deadline):
            raise TypeError("a defect")

    calibrator = Calibrator(Encoder(), Broken())
    assert await calibrator.get("c", "m-1", Token("e", 10), TEXT, SOON) is None
    assert "a defect" in caplog.text


async def test_who_cannot_wait_goes_without_and_the_fit_goes_on():
    index = Index((0.8, 0.3), (0.6, 0.1))
    calibrator = Calibrator(Encoder(), index)
    assert await calibrator.get("c", "m-1", Token("e", 10), TEXT, Deadline.after(0)) is None
    assert await calibrator.get("c", "m-1", Token("e", 10), TEXT, SOON) is not None
    assert index.searches == 1


async def test_a_collection_made_anew_is_fitted_anew():
    index = Index((0.8, 0.3), (0.6, 0.1))
    calibrator = Calibrator(Encoder(), index)
    assert await calibrator.get("c", "m-1", Token("e", 10), TEXT, SOON) is not None
    assert await calibrator.get("c", "m-1", Token("f", 10), TEXT, SOON) is None
    assert index.searches == 2  # the index answers from "e"


async def test_closing_ends_a_fit():
    calibrator = Calibrator(Encoder(), Index((0.8, 0.3)))
    assert await calibrator.get("c", "m-1", Token("e", 10), TEXT, Deadline.after(0)) is None
    await calibrator.close()
    assert len(asyncio.all_tasks()) == 1


async def test_a_modality_without_calibration_queries_has_none():
    calibrator = Calibrator(Encoder(), Index((0.8, 0.3)))
    assert await calibrator.get("c", "m-1", Token("e", 10), IMAGE, SOON) is None
