from __future__ import annotations

import numpy as np
import pytest

from mmesh.content import Modality, Role
from mmesh.models import reference
from mmesh.models.encoders.lite.model import LiteEncoder, load_lite
from mmesh.models.encoders.matryoshka import Truncated
from mmesh.models.probes import encode
from mmesh.models.wrapped import Wrapped

TEXT, IMAGE, PAIR = Modality


@pytest.fixture(scope="module")
def lite() -> LiteEncoder:
    return load_lite()


def test_the_pool_shows_the_same_things_in_every_modality() -> None:
    texts, images, pairs = map(reference.of_modality, Modality)
    assert len(texts) == len(images) == len(pairs) == reference.COUNT
    assert len({content.text for content in texts}) == reference.COUNT
    for text, image, pair in zip(texts, images, pairs, strict=True):
        assert pair.text == text.text
        assert pair.parts[0] == image.parts[0]


def test_a_model_is_calibrated_in_the_roles_that_it_reads_differently(
    lite: LiteEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = reference._things()[:8]
    monkeypatch.setattr(reference, "_things", lambda: few)
    info = reference.calibrated(lite).info
    shapes = {kind: rows.shape for kind, rows in info.calibration.items()}
    assert shapes == dict.fromkeys(Modality, (8, lite.info.dim))
    assert list(info.calibration_candidates) == [PAIR]  # by TEXT_SHARE; texts and pictures alike
    (one,) = encode(lite, reference.of_modality(PAIR)[:1], Role.CANDIDATE)
    np.testing.assert_allclose(info.calibration_candidates[PAIR][0], one, atol=1e-5)
    cut = Truncated(Wrapped(lite, info), 64).info
    assert cut.calibration_candidates[PAIR].shape == (8, 64)
    np.testing.assert_allclose(np.linalg.norm(cut.calibration_candidates[PAIR], axis=1), 1, 1e-5)


def test_a_picture_of_the_pool_is_nearer_to_its_name_than_to_most_others(lite: LiteEncoder) -> None:
    names = encode(lite, reference.of_modality(TEXT), Role.QUERY)
    shown = encode(lite, reference.of_modality(IMAGE)[:32], Role.CANDIDATE)
    scores = shown @ names.T
    ranks = (scores > scores[np.arange(32), np.arange(32)][:, None]).sum(axis=1)
    assert np.median(ranks) < 10
