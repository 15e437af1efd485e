"""Decoding of untrusted pictures: what is read, what is refused, and how soon."""

from __future__ import annotations

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmesh.errors import InvalidImage
from mmesh.models import images
from mmesh.models.pictures import BrokenPicture, containers

RED = (255, 0, 0)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + checksum


def gif_header(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)


def jpeg_header(width: int, height: int) -> bytes:
    frame = struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)
    return b"\xff\xd8\xff\xe0\x00\x04\x00\x00\xff\xc0" + frame


def webp_header(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x20\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00" + bytes(4) + size


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_every_format_is_read(kind: str) -> None:
    image = images.decode(encoded(Image.new("RGB", (40, 30), RED), kind), "p")
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert np.abs(np.asarray(image, int) - RED).max() <= 3


@pytest.mark.parametrize("options", [{"lossless": True}, {"lossless": False}, {"exif": b"Exif"}])
def test_every_kind_of_webp_states_its_size(options: dict[str, Any]) -> None:
    assert images.read_size(encoded(Image.new("RGB", (41, 23)), "WEBP", **options), "p") == (41, 23)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"x" * 999}])
def test_every_kind_of_jpeg_states_its_size(options: dict[str, Any]) -> None:
    assert images.read_size(encoded(Image.new("RGB", (41, 23)), "JPEG", **options), "p") == (41, 23)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(Image.new("RGB", (4, 4)), "TIFF"),
        encoded(Image.new("RGB", (4, 4)), "BMP"),
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff" + b"\xff" * 4000,
        b"RIFF\x00\x00\x00\x00WEBP",
        gif_header(0, 5),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage) as caught:
        images.decode(data, "content.parts[1].image.data")
    assert caught.value.field == "content.parts[1].image.data"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_truncated_picture_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(InvalidImage):
        images.decode(data[: len(data) // 2], "p")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("is_noise", [True, False])
def test_what_is_called_cut_off_is_refused(kind: str, is_noise: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256 if is_noise else 1, (40, 40, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    steps = range(len(data) // 2, len(data), max(1, len(data) // 30))
    cuts = [data[:end] for end in (*steps, *range(len(data) - 25, len(data) + 1))]

    def is_called_broken(cut: bytes) -> bool:
        try:
            return containers.size_of(cut) is None or containers.is_cut_off(cut)
        except BrokenPicture:
            return True

    called = [cut for cut in cuts if is_called_broken(cut)]
    for cut in called:
        with pytest.raises(InvalidImage):
            images.decode(cut, "p")
    assert data not in called
    assert bool(called) is (kind != "GIF")  # of which the end of the pixels is not looked for


@pytest.mark.parametrize("header", [png_header, gif_header, jpeg_header, webp_header])
@pytest.mark.parametrize("size", [(8000, 7000), (20_001, 1), (65_000, 65_000)])
def test_too_large_is_refused_before_decoding(header: Any, size: tuple[int, int]) -> None:
    if header is webp_header and size[0] > 16_384:
        size = (16_384, 16_384)
    started = time.process_time()
    with pytest.raises(InvalidImage, match="at most"):
        images.decode(header(*size), "p")
    assert time.process_time() - started < 0.1


def test_a_gif_frame_larger_than_its_canvas_is_refused() -> None:
    small = bytearray(encoded(Image.new("P", (4, 4)), "GIF"))
    frame = small.index(b"\x2c")
    small[frame + 5 : frame + 9] = struct.pack("<HH", 60_000, 60_000)
    with pytest.raises(InvalidImage):
        images.decode(bytes(small), "p")


def test_one_pixel_is_enough() -> None:
    assert images.decode(encoded(Image.new("RGB", (1, 1), RED), "PNG"), "p").size == (1, 1)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, (0, 0, 255))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert images.decode(data, "p").getpixel((4, 4)) == RED


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(mode: str) -> None:
    clear = Image.new("RGBA", (8, 8), (9, 9, 9, 0))
    options = {"transparency": 0} if mode == "P" else {}
    image = Image.new("P", (8, 8)) if mode == "P" else clear.convert(mode)
    pixels = images.decode(encoded(image, "PNG", **options), "p")
    assert pixels.getpixel((4, 4)) == (255, 255, 255)


def test_sixteen_bits_keep_their_greys() -> None:
    ramp = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16)
    pixels = np.asarray(images.decode(encoded(Image.fromarray(ramp), "PNG"), "p"))
    assert len(np.unique(pixels)) > 250
    assert (pixels[0, 0, 0], pixels[-1, -1, 0]) == (0, 255)


def test_cmyk_is_read() -> None:
    data = encoded(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG", quality=100)
    red, green, blue = images.decode(data, "p").getpixel((8, 8))
    assert red > 240
    assert max(green, blue) < 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_set_upright(orientation: int) -> None:
    upright = Image.new("RGB", (32, 16))
    upright.paste(RED, (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = _turned(upright, orientation)
    image = images.decode(encoded(turned, "PNG", exif=exif), "p")
    assert np.array_equal(np.asarray(image), np.asarray(upright))


def _turned(upright: Image.Image, orientation: int) -> Image.Image:
    """Return what a camera stores that was held so that `orientation` sets it upright."""
    methods = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    return upright.transpose(methods[orientation]) if orientation > 1 else upright


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense", b"\0"])
def test_broken_exif_is_no_reason_to_refuse(exif: bytes) -> None:
    data = encoded(Image.new("RGB", (8, 8), RED), "JPEG", exif=exif)
    assert images.decode(data, "p").size == (8, 8)
