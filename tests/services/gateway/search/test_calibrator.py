import numpy as np

from mmesh.content import Modality
from mmesh.errors import Unavailable
from mmesh.serving.deadline import Deadline
from services.gateway.interfaces import ReferenceRows, ServedModel
from services.gateway.search.calibrator import Calibrator

TEXT, IMAGE, PAIR = Modality
SOON = Deadline.after(3600)
ROWS = ReferenceRows.of(np.repeat(np.eye(8, dtype=np.float32), 2, axis=0))


class Encoder:
    """Serves a model with a reference pool of some modalities, unless it is away."""

    def __init__(self, *modalities):
        self.modalities, self.is_away = modalities, False

    async def model(self, fingerprint, deadline):
        if self.is_away:
            raise Unavailable("away")
        return ServedModel("m", fingerprint, 8, dict.fromkeys(self.modalities, ROWS))


async def test_a_calibration_is_fitted_once_for_a_model_and_a_modality_of_queries():
    calibrator = Calibrator(Encoder(TEXT, IMAGE))
    first = await calibrator.get("m-1", TEXT, SOON)
    assert first.usual == {TEXT: 1.0, IMAGE: 1.0}
    assert await calibrator.get("m-1", TEXT, SOON) is first
    assert await calibrator.get("m-1", IMAGE, SOON) is not first
    assert (await calibrator.get("m-2", TEXT, SOON)).version != first.version


async def test_without_an_encoder_there_is_none_until_it_is_back():
    encoder = Encoder(TEXT)
    calibrator = Calibrator(encoder)
    encoder.is_away = True
    assert await calibrator.get("m-1", TEXT, SOON) is None
    encoder.is_away = False
    assert await calibrator.get("m-1", TEXT, SOON) is not None


async def test_a_modality_that_another_encoder_brings_is_fitted_when_it_comes():
    encoder = Encoder(TEXT)
    calibrator = Calibrator(encoder)
    assert not (await calibrator.get("m-1", TEXT, SOON)).covers([TEXT, IMAGE])
    encoder.modalities = (TEXT, IMAGE)
    assert (await calibrator.get("m-1", TEXT, SOON)).covers([TEXT, IMAGE])


async def test_a_modality_without_a_reference_pool_has_no_calibration():
    assert await Calibrator(Encoder(TEXT)).get("m-1", IMAGE, SOON) is None
