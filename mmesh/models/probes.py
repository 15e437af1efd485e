"""Queries that belong to no collection: for warming up, parity checks and the start-up canary.

They are generated, so that they are the same everywhere.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image as Pillow

from mmesh.content import Content, Modality, Role
from mmesh.models.protocol import EncoderModel, FloatMatrix, Prepared, encode_together

_BATCH = 8
_SIZES = ((64, 64), (96, 64), (64, 120), (160, 96))
_ASKED = ("a photo of {}", "{} in the evening", "how does {} work?", "the history of {}")
_THINGS = (
    "a harbour", "an old bridge", "a red bicycle", "a mountain lake", "a violin", "fresh bread",
    "a steam engine", "a sleeping cat", "a street market", "a lighthouse", "a chess board",
    "a wooden chair", "a desert road", "a city map", "a bowl of fruit", "a thunderstorm",
)  # fmt: skip


def texts() -> list[Content]:
    """Return 64 short texts, questions and descriptions among them."""
    return [Content.of(asked.format(thing)) for asked in _ASKED for thing in _THINGS]


def pictures() -> list[Content]:
    """Return 16 pictures of 64 to 160 pixels a side, as PNG."""
    return [Content.of(picture(number)) for number in range(16)]


def illustrated_texts() -> list[Content]:
    """Return 16 pictures with a text each."""
    return [
        Content.of(picture(number), f"{thing}, seen from the other side")
        for number, thing in enumerate(_THINGS)
    ]


def of_modality(modality: Modality) -> list[Content]:
    """Return the probes of one modality."""
    makers = {
        Modality.TEXT: texts,
        Modality.IMAGE: pictures,
        Modality.IMAGE_TEXT: illustrated_texts,
    }
    return makers[modality]()


def picture(number: int, size: tuple[int, int] | None = None) -> bytes:
    """Return a PNG of `size` (width, height): two colours that fade, a disc and a bar."""
    width, height = size or _SIZES[number % len(_SIZES)]
    random = np.random.default_rng(number)
    colours = random.integers(0, 256, (4, 3)).astype(np.float64)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    canvas = colours[0] + (colours[1] - colours[0]) * ((x + y) / 2)[..., None]
    centre = random.uniform(0.3, 0.7, 2)
    canvas[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 0.04] = colours[2]
    canvas[abs(y - random.uniform(0.1, 0.9)) < 0.05] = colours[3]
    data = io.BytesIO()
    Pillow.fromarray(canvas.astype(np.uint8)).save(data, "PNG")
    return data.getvalue()


def encode(model: EncoderModel, contents: Sequence[Content], role: Role) -> FloatMatrix:
    """Return unit rows (n, dim) in order, without instruction, in small batches of one group."""
    prepared = [model.prepare(content, role, "") for content in contents]
    rows = np.empty((len(prepared), model.info.dim), np.float32)
    for places in _batches(prepared):
        rows[places] = encode_together(model, [prepared[place] for place in places])
    return rows


def warm_up(model: EncoderModel) -> None:
    """Encode some probes of each kind, so that what is made at first use is there before it.

    Texts come last in ever smaller batches: what is made for many rows serves for few, too.
    """
    for modality in (Modality.IMAGE, Modality.IMAGE_TEXT):
        if modality in model.info.modalities:
            encode(model, of_modality(modality)[:_BATCH], Role.QUERY)
    if Modality.TEXT in model.info.modalities:
        prepared = [model.prepare(content, Role.QUERY, "") for content in texts()]
        group = [one for one in prepared if one.group == prepared[0].group]
        for count in range(len(group), 0, -1):
            encode_together(model, group[:count])


def _batches(prepared: Sequence[Prepared]) -> list[list[int]]:
    """Group places by group, dear ones beside dear ones."""
    order = sorted(range(len(prepared)), key=lambda n: (prepared[n].group, prepared[n].cost))
    batches: list[list[int]] = []
    for place in order:
        last = batches[-1] if batches else []
        if 0 < len(last) < _BATCH and prepared[last[0]].group == prepared[place].group:
            last.append(place)
        else:
            batches.append([place])
    return batches
