"""What a centre crop keeps of pictures far from square, for processors that resize first.

Such a processor brings the shorter side to the size that the model sees: it makes 4.5 million x 224
pixels, some gigabytes, of a picture of 20,000 x 1, and then drops all but 224 x 224 of them.
"""

from __future__ import annotations

import math
from typing import Any

from PIL import Image

from mmesh.errors import InvalidImage

FAR_FROM_SQUARE = 16
"""Longer side over shorter side from which the ends are cut off first; below, nothing changes."""
MAX_RATIO = 200
"""The same for a processor that keeps the ends."""


def middle_of(picture: Image.Image, processor: Any, path: str) -> Image.Image:
    """Return what a processor of transformers needs of a picture: all of it, or its middle.

    Whole multiples of the shorter side are cut off at each end, so that what is left is resized to
    the pixels that it would have had.

    Raises:
        InvalidImage: it is far from square, and the processor would keep all of the large picture
            that it makes of it; `path` names the field.
    """
    size = getattr(processor, "size", None) or {}
    side = size.get("shortest_edge")
    if not side or size.get("longest_edge"):
        return picture
    short, long = sorted(picture.size)
    if not getattr(processor, "do_center_crop", False):
        if long > MAX_RATIO * short:
            raise InvalidImage(path, f"has a side over {MAX_RATIO} times the other; crop it")
        return picture
    crop = processor.crop_size
    kept = FAR_FROM_SQUARE * math.ceil(max(side, crop["height"], crop["width"]) / side) * short
    cut = max(0, long - kept) // (2 * short) * short
    if not cut:
        return picture
    left, top = (cut, 0) if picture.width == long else (0, cut)
    return picture.crop((left, top, picture.width - left, picture.height - top))
