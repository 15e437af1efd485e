"""How batch sizes follow from a few timed passes."""

import numpy as np
import pytest

from mmesh.content import Modality
from mmesh.models.protocol import EncoderInfo, OutOfDeviceMemory, Prepared
from services.encoder import tuning
from services.encoder.config import EncoderSettings
from services.encoder.tuning import Timing, batch_limits, limits_for, timed

RATE, PASS_S = 200_000.0, 0.004


def passes(*costs, pass_s=PASS_S, rate=RATE):
    """Time passes as a device has them that takes `pass_s` and its work."""
    return [Timing(cost, pass_s + cost / rate) for cost in costs]


class Model:
    """Stands for a model at the protocol's seam; batches over `fits` do not fit the device."""

    def __init__(self, fits=1 << 30, packs=True, modalities=Modality):
        self.info = EncoderInfo("m", "m", 2, frozenset(modalities), 100, False, packs=packs)
        self.fits = fits

    def prepare(self, content, role, instruction):
        assert content.modality in self.info.modalities
        return Prepared("text", 200, content)

    def collate(self, batch):
        return len(batch)

    def forward(self, count):
        if count * 200 > self.fits:
            raise OutOfDeviceMemory
        return np.ones((count, 2), np.float32)


def test_the_smallest_batch_is_taken_that_is_fast_and_long_enough():
    timings = passes(*(200 << n for n in range(9)))
    limits = limits_for(timings, packed=True, devices=1)
    chosen = next(one for one in timings if one.cost == limits.shape.max_cost)
    assert chosen.seconds >= tuning.LEAST_PASS_S
    assert chosen.rate >= tuning.ENOUGH * max(one.rate for one in timings)
    assert limits.shape.packed


def test_a_pass_of_nothing_costs_what_it_takes():
    limits = limits_for(passes(200, 51_200), packed=False, devices=1)
    assert limits.shape.pass_cost == pytest.approx(PASS_S * RATE, rel=0.2)
    assert not limits.shape.packed


def test_a_slow_device_gets_batches_that_end_in_time():
    timings = passes(*(200 << n for n in range(9)), rate=10_000.0)
    limits = limits_for(timings, packed=True, devices=1)
    chosen = next(one for one in timings if one.cost == limits.shape.max_cost)
    assert chosen.seconds <= tuning.LONGEST_PASS_S


def test_work_of_ten_seconds_may_wait_on_all_devices():
    one, two = (limits_for(passes(200, 51_200), packed=True, devices=n) for n in (1, 2))
    assert two.max_waiting_cost == pytest.approx(2 * one.max_waiting_cost, rel=0.01)


def test_what_does_not_fit_is_not_suggested(monkeypatch):
    monkeypatch.setattr(tuning, "_WAKE_S", 0.0)
    timings = list(timed(Model(fits=2000)))
    assert [one.cost for one in timings] == [200, 400, 800, 1600]


def test_a_model_of_pictures_alone_is_timed_by_a_picture(monkeypatch):
    monkeypatch.setattr(tuning, "_WAKE_S", 0.0)
    model = Model(fits=500, modalities=[Modality.IMAGE])
    assert [one.cost for one in timed(model)] == [200, 400]


@pytest.mark.parametrize(
    ("device", "largest"), [("cpu", 1e-4), ("cpu,cpu", 1e-4), ("cuda:0", 0.02), ("cpu,cuda", 0.02)]
)
def test_devices_alike_are_held_to_the_same_parity(device, largest):
    assert EncoderSettings(device=device).tolerance == largest


@pytest.mark.parametrize("packs", [False, True])
async def test_what_is_set_stays_and_a_cpu_is_not_measured(packs):
    model = Model(packs=packs)
    model.forward = None  # nothing is run
    settings = EncoderSettings(max_batch_cost=77, pass_cost=0)
    limits = await batch_limits(settings, [model])
    shape = limits.shape
    assert (shape.max_items, shape.max_cost, shape.pass_cost) == (64, 77, 0)
    assert limits.max_waiting_cost == 65_536
    assert shape.packed is packs


async def test_on_a_gpu_only_what_is_auto_is_measured(monkeypatch):
    monkeypatch.setattr(tuning, "timed", lambda model: iter(passes(200, 40_000)))
    settings = EncoderSettings(device="cuda", max_batch_items=9)
    limits = await batch_limits(settings, [Model()])
    assert (limits.shape.max_items, limits.shape.max_cost) == (9, 40_000)
