"""With `published_preprocessing`, MM-Embed sees the pixels that its published code would see."""

import io

import numpy as np
import pytest
from PIL import Image as Pillow

from mmesh.content import Content, Image
from mmesh.errors import FailedPrecondition, InvalidImage
from mmesh.models import images
from mmesh.models.encoders.families import EncoderChoice, open_encoder

torch = pytest.importorskip("torch", reason="torch is absent: run `make setup-models`")
pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore:Palette images with")]

NOISE = np.random.default_rng(7).integers(0, 256, (30, 40, 4), dtype=np.uint8)


def saved(picture: Pillow.Image, kind: str, **options) -> bytes:
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


def rotated() -> bytes:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    return saved(Pillow.fromarray(NOISE[..., :3]), "JPEG", exif=exif, quality=95)


def see_through() -> bytes:
    return saved(Pillow.fromarray(NOISE, "RGBA"), "PNG")


def palette() -> bytes:
    colours = Pillow.fromarray(NOISE[..., :3]).convert("P")
    return saved(colours, "PNG", transparency=bytes(range(256)))


def deep() -> bytes:
    values = NOISE[..., 0].astype(np.uint16) * 257
    return saved(Pillow.fromarray(values), "PNG")


ODD = {"rotated": rotated(), "see-through": see_through(), "palette": palette(), "16 bit": deep()}
PLAIN = {
    "png": saved(Pillow.fromarray(NOISE[..., :3]), "PNG"),
    "gray": saved(Pillow.fromarray(NOISE[..., 0]), "JPEG"),
}


def published(data: bytes) -> np.ndarray:
    return np.asarray(Pillow.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("data", [*ODD.values(), *PLAIN.values()], ids=[*ODD, *PLAIN])
def test_bare_pixels_are_those_of_the_published_code(data):
    np.testing.assert_array_equal(images.decode(data, "image", bare=True), published(data))


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_by_default_a_picture_is_seen_as_people_see_it(data):
    ours = np.asarray(images.decode(data, "image"))
    assert ours.shape != published(data).shape or (ours != published(data)).any()


def test_bare_pixels_are_read_as_carefully():
    bomb = saved(Pillow.new("1", (20_001, 1)), "PNG")
    with pytest.raises(InvalidImage, match="a side are allowed"):
        images.decode(bomb, "image", bare=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from mmesh.testing.tiny_models import build_tiny_mm_embed

    return build_tiny_mm_embed(tmp_path_factory.mktemp("models") / "mm-embed")


def pixels(folder, data: bytes, **choice) -> np.ndarray:
    model = open_encoder(EncoderChoice(model=str(folder), **choice))
    content = Content((Image(data, "image/png"),))
    return model.prepare(content, "candidate", "").payload.pixels


def test_the_setting_changes_pixels_and_fingerprint(folder):
    ours = open_encoder(EncoderChoice(model=str(folder)))
    theirs = open_encoder(EncoderChoice(model=str(folder), published_preprocessing=True))
    assert ours.info.fingerprint != theirs.info.fingerprint
    flat = saved(Pillow.fromarray(published(ODD["see-through"])), "PNG")
    seen = pixels(folder, ODD["see-through"], published_preprocessing=True)
    np.testing.assert_array_equal(seen, pixels(folder, flat))
    assert (seen != pixels(folder, ODD["see-through"])).any()


def test_families_without_it_refuse_the_setting():
    with pytest.raises(FailedPrecondition, match="lite has no published preprocessing"):
        open_encoder(EncoderChoice(published_preprocessing=True))
