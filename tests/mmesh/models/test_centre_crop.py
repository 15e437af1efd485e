"""Pictures far from square lose what a centre crop drops, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmesh.errors import InvalidImage
from mmesh.models.encoders.centre_crop import middle_of

SIZES = [(60, 40), (40, 40), (17, 1), (999, 1), (1, 2000), (3, 500), (4000, 32), (30, 1001)]


def noise(size: tuple[int, int]) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


def processor(**settings: Any) -> Any:
    return SimpleNamespace(size={"shortest_edge": 224}, **settings)


@pytest.mark.models
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop", [(56, 56), (48, 40), (60, 200)])
def test_the_processor_sees_the_same_pixels(size: tuple[int, int], crop: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchvision")
    process = transformers.CLIPImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": crop[0], "width": crop[1]}
    )
    whole = noise(size)
    middle = middle_of(whole, process, "p")
    assert (middle is whole) == (max(size) < 18 * min(size) * -(-max(*crop, 56) // 56))
    pixels = [process(images=one, return_tensors="np")["pixel_values"] for one in (whole, middle)]
    exact = 56 * max(size) % min(size) == 0  # else the processor rounds the scale
    np.testing.assert_allclose(*pixels, atol=0.02 if exact else 0.5)


def test_pictures_are_cut_only_where_the_processor_would_cut_them() -> None:
    thin = Image.new("RGB", (4000, 1))
    crop = {"height": 224, "width": 224}
    assert middle_of(thin, processor(do_center_crop=True, crop_size=crop), "p").size == (16, 1)
    for resize in ({"height": 224, "width": 224}, {"shortest_edge": 224, "longest_edge": 400}):
        assert middle_of(thin, SimpleNamespace(size=resize, do_center_crop=None), "p") is thin
    assert middle_of(thin, SimpleNamespace(), "p") is thin


def test_a_processor_that_keeps_the_ends_gets_no_very_thin_picture() -> None:
    keeps = processor(do_center_crop=False)
    thin = Image.new("RGB", (1, 200))
    assert middle_of(thin, keeps, "p") is thin
    with pytest.raises(InvalidImage, match="a side over 200 times the other"):
        middle_of(Image.new("RGB", (1, 201)), keeps, "p")
