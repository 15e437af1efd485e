"""The worst queries of a run with what was wanted and found, for people to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest

from PIL import Image as Pillow

from mmesh.aio import AsyncClient
from mmesh.content import Content
from mmesh.errors import MmeshError
from mmesh.evaluation.live.contents import content_of
from mmesh.evaluation.scoring import Poor

SHOWN, EACH_SIDE, PIXELS = 20, 4, 112
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")


@dataclass(frozen=True, slots=True)
class Card:
    """A query or candidate as it is shown."""

    id: str
    text: str
    pictures: tuple[str, ...]
    """Small JPEGs in base64."""
    good: bool = False
    """Whether it is relevant."""


@dataclass(frozen=True, slots=True)
class Worst:
    """A query that went badly."""

    task: str
    way: str
    value: float
    instruction: str
    query: Card
    wanted: tuple[Card, ...]
    found: tuple[Card, ...]


def choose(poor: Sequence[Poor]) -> list[Poor]:
    """Return the worst queries, taking turns among the tasks so that one does not fill the page."""
    by_task: dict[str, list[Poor]] = {}
    for one in sorted(poor, key=lambda one: one.value):
        by_task.setdefault(one.task, []).append(one)
    turns = (one for turn in zip_longest(*by_task.values()) for one in turn if one is not None)
    return sorted(turns, key=lambda one: one.value)[:SHOWN]


async def collect(client: AsyncClient, collection: str, poor: Sequence[Poor]) -> list[Worst]:
    """Return the worst queries with pictures; a candidate that is not to be had shows its id."""
    return [await _collect(client, collection, one) for one in choose(poor)]


async def _collect(client: AsyncClient, collection: str, poor: Poor) -> Worst:
    wanted, found = sorted(poor.relevant)[:EACH_SIDE], poor.found[:EACH_SIDE]
    contents: dict[str, Content] = {}
    for one in dict.fromkeys([*wanted, *found]):  # one by one, since they may be large
        with suppress(MmeshError):  # the page is worth having without pictures
            for candidate in await client.batch_get_candidates(collection, [one]):
                contents[one] = candidate.content

    def cards(ids: Sequence[str]) -> tuple[Card, ...]:
        return tuple(_card(one, contents.get(one), one in poor.relevant) for one in ids)

    try:
        asked = _card(poor.query.id, content_of(poor.query), good=False)
    except OSError:
        asked = Card(poor.query.id, poor.query.text, ())
    return Worst(
        poor.task, poor.way, poor.value, poor.query.instruction, asked, cards(wanted), cards(found)
    )


def _card(name: str, content: Content | None, good: bool) -> Card:
    if content is None:
        return Card(name, "", (), good)
    small = [thumbnail(image.data) for image in content.images[:2]]
    return Card(name, content.text[:300], tuple(one for one in small if one), good)


def thumbnail(data: bytes) -> str:
    """Return a small JPEG in base64; nothing when the picture cannot be decoded."""
    try:
        with Pillow.open(io.BytesIO(data), formats=_FORMATS) as picture:
            picture.draft("RGB", (PIXELS, PIXELS))
            small = picture.convert("RGB")
            small.thumbnail((PIXELS, PIXELS))
            out = io.BytesIO()
            small.save(out, "JPEG", quality=70)
    except Exception:  # what a decoder raises is of all kinds, and nobody misses the picture
        return ""
    return base64.b64encode(out.getvalue()).decode()
