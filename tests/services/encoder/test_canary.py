"""The start-up canary beside models that answer alike, and models that do not."""

from dataclasses import replace

import pytest

from mmesh.content import Modality
from mmesh.errors import FailedPrecondition
from mmesh.models.encoders.lite import load_lite
from mmesh.models.encoders.matryoshka import Truncated
from mmesh.models.parity import Reference, ask_alone, encoder_groups, save_reference
from mmesh.models.wrapped import Wrapped
from services.encoder import metrics
from services.encoder.canary import _encode, check_parity, parity_cache
from services.encoder.config import EncoderSettings


class Leaking(Wrapped):
    """Stands for a model whose padding leaks: rows depend on the size of their batch."""

    def forward(self, collated):
        rows = super().forward(collated)
        rows[:, 0] += 1e-3 * len(rows)
        return rows


@pytest.fixture(scope="module")
def lite():
    return load_lite(threads=1)


@pytest.fixture(scope="module")
def texts(lite):
    """Answers few of the probes, and so is measured soon."""
    return Wrapped(lite, replace(lite.info, modalities=frozenset({Modality.TEXT})))


async def test_a_model_that_answers_alike_passes_and_is_measured(lite):
    await check_parity([lite, lite], None, 1e-4)
    assert 0 < metrics.parity_max_abs_diff._value.get() < 1e-5


async def test_a_model_whose_vectors_depend_on_the_batch_never_serves(texts):
    with pytest.raises(FailedPrecondition, match=r"differ by 0\.00\d+, more than 0\.0001"):
        await check_parity([Leaking(texts, texts.info)], None, 1e-4)


async def test_devices_must_agree(texts):
    class Other(Wrapped):
        def forward(self, collated):
            return -super().forward(collated)

    with pytest.raises(FailedPrecondition, match="differ by"):
        await check_parity([texts, Other(texts, texts.info)], None, 1e-4)


async def test_stored_vectors_must_be_met(texts, tmp_path):
    answers = await ask_alone(encoder_groups(_encode(texts), texts.info.modalities))
    save_reference(tmp_path / "lite.npz", Reference("lite", answers))
    await check_parity([texts], tmp_path / "lite.npz", 1e-4)
    with pytest.raises(FailedPrecondition, match="no answer of 128 numbers"):
        await check_parity([Truncated(texts, 128)], tmp_path / "lite.npz", 1e-4)
    changed = answers | {"query: text": answers["query: text"][::-1]}
    save_reference(tmp_path / "other.npz", Reference("another model", changed))
    with pytest.raises(FailedPrecondition, match="query: text"):
        await check_parity([texts], tmp_path / "other.npz", 1e-4)


async def test_what_has_passed_is_not_asked_again_until_something_changes(texts, tmp_path):
    class Counting(Wrapped):
        passes = 0

        def forward(self, collated):
            Counting.passes += 1
            return super().forward(collated)

    async def check(**settings):
        chosen = EncoderSettings(canary_cache=tmp_path / "notes", **settings)
        models = [Counting(texts, texts.info)]
        Counting.passes = 0
        await check_parity(models, None, chosen.tolerance, parity_cache(chosen, models))
        return Counting.passes

    asked = await check()
    measured = metrics.parity_max_abs_diff._value.get()
    metrics.parity_max_abs_diff.set(1)
    assert asked > 0
    assert await check() == 0
    assert metrics.parity_max_abs_diff._value.get() == measured
    assert await check(threads=7) == asked
    assert await check(parity_tolerance=0.5) == asked
    assert await check(trust_remote_code=True) == await check(trust_remote_code=True) == asked


async def test_what_has_failed_fails_again(texts, tmp_path):
    chosen = EncoderSettings(canary_cache=tmp_path / "notes")
    models = [Leaking(texts, texts.info)]
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="differ by"):
            await check_parity(models, None, 1e-4, parity_cache(chosen, models))
