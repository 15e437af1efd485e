"""Purging the log goes on, whatever the database says."""

import pytest
from prometheus_client import REGISTRY

from mmesh.serving.backoff import Pauses
from services.index.upkeep.purges import purges


class FaultyLog:
    """Notes the horizons that it is purged to, and fails as long as it is told to."""

    def __init__(self):
        self.error, self.horizons = None, []

    def purge(self, horizon_s):
        self.horizons.append(horizon_s)
        if self.error is not None:
            raise self.error
        return 0


@pytest.fixture
def log():
    return FaultyLog()


async def test_the_log_is_purged_again_and_again(log, until):
    async with purges(log, 0.001, 60.0):
        await until(lambda: log.horizons[:3] == [60.0] * 3)


async def test_whatever_a_purge_raises_is_counted_and_the_next_one_comes(log, until, error):
    labels = {"error": type(error).__name__}

    def failures():
        return REGISTRY.get_sample_value("mmesh_index_purge_failures_total", labels) or 0.0

    log.error, before = error, failures()
    async with purges(log, 0.001, 60.0) as periodic:
        await until(lambda: failures() >= before + 3)
        log.error = None
        count = len(log.horizons)
        await until(lambda: len(log.horizons) > count + 2)
        assert periodic._task.is_well


async def test_the_loop_comes_back_from_a_defect_of_its_own(log, until, error):
    async with purges(log, 0.001, 60.0) as periodic:
        periodic._task._backoff = Pauses(first_s=0.001, longest_s=60)  # that of a task is long
        attempt, broken = periodic._try, [error, error]

        async def broken_try():
            if broken:
                raise broken.pop()
            await attempt()

        periodic._try = broken_try
        count = len(log.horizons)
        await until(lambda: not broken and len(log.horizons) > count + 2)
        assert periodic._task.failures == 0
