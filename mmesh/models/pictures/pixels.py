"""Decoding of pictures into RGB pixels, upright, over a ground that leaves them visible."""

from __future__ import annotations

import io

from PIL import Image

from mmesh.models.pictures.containers import Container, check_size

REDUCED_PIXELS = 24_000_000
"""Larger pictures are reduced to half their sides: no model looks so closely."""
_TRANSPOSE = Image.Transpose
_UPRIGHT = {
    2: _TRANSPOSE.FLIP_LEFT_RIGHT,
    3: _TRANSPOSE.ROTATE_180,
    4: _TRANSPOSE.FLIP_TOP_BOTTOM,
    5: _TRANSPOSE.TRANSPOSE,
    6: _TRANSPOSE.ROTATE_270,
    7: _TRANSPOSE.TRANSVERSE,
    8: _TRANSPOSE.ROTATE_90,
}
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
NEARLY_WHITE = 240
"""Luminance from which a pixel is not seen on white."""
SEEN_SHARE = 0.001
"""Share of its drawn pixels that must be seen on white, or the picture is laid on black."""
_DRAWN_ALPHA = 16


def open_picture(container: Container) -> Image.Image:
    """Return Pillow's image of the file, not yet decoded; its errors are of many types.

    Raises:
        BrokenPicture: it is larger than allowed, whatever its header said.
    """
    # One decoder only, so that no other of Pillow's many parsers sees the bytes.
    image = Image.open(io.BytesIO(container.data), formats=[container.kind])
    check_size(image.size)
    return image


def pixels_of(image: Image.Image, orientation: int) -> Image.Image:
    """Return the pixels of an opened picture as RGB, upright; those of huge ones reduced."""
    is_huge = image.width * image.height > REDUCED_PIXELS
    if is_huge and image.format == "JPEG":
        image.draft("RGB", (-(-image.width // 2), -(-image.height // 2)))
        is_huge = image.width * image.height > REDUCED_PIXELS
    image.load()
    turn = _UPRIGHT.get(orientation)
    pixels = _rgb(image)
    if is_huge:
        pixels = pixels.reduce(2)
    return pixels if turn is None else pixels.transpose(turn)


def plain_pixels_of(image: Image.Image) -> Image.Image:
    """Return the pixels as the published code of many models has them."""
    image.load()
    return image.convert("RGB")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if "A" in image.getbands() or "transparency" in image.info:
        return _flattened(_as(image, "RGBA"))
    return _as(image, "RGB")


def _as(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in a mode; unlike Pillow's own, not a copy if it has that already."""
    return image if image.mode == mode else image.convert(mode)


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Keep the high byte of each value; Pillow's own conversion would cut all above 255."""
    import numpy as np  # the only one who needs it, in a process that is to start soon

    values = np.asarray(image)
    if values.dtype != np.uint16:
        values = values.clip(0, 65535).astype(np.uint16)
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def _flattened(image: Image.Image) -> Image.Image:
    """Lay a transparent picture on white; on black if nothing of it would be seen on white."""
    over_white = _over(image, _WHITE)
    drawn = sum(image.getchannel("A").histogram()[_DRAWN_ALPHA:])
    seen = sum(over_white.convert("L").histogram()[:NEARLY_WHITE])
    return over_white if seen > SEEN_SHARE * drawn or not drawn else _over(image, _BLACK)


def _over(image: Image.Image, ground: tuple[int, int, int]) -> Image.Image:
    canvas = Image.new("RGB", image.size, ground)
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas
