"""Rows of mteb's data sets as content: the text that mteb gives any model, pictures as files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from mteb.types import PromptType
from PIL import Image as Pillow

from mmesh.content import Content, Image, Modality, Part
from mmesh.models.pictures import BrokenPicture
from mmesh.models.pictures.containers import kind_of

Row = Mapping[str, Any]


def with_files(rows: Any) -> Any:
    """Return a data set whose pictures are read as the files that they are, not decoded."""
    if isinstance(rows.features.get("image"), datasets.Image):
        return rows.cast_column("image", datasets.Image(decode=False))
    return rows


def modalities_of(task: Any, side: PromptType | None) -> frozenset[str]:
    """Return which columns one side of a task is made of: "text", "image"."""
    return frozenset(task.get_modalities(side))


def wanted_of(task: Any) -> Modality | None:
    """Return the modality of the documents that a task is after."""
    return {
        frozenset({"text"}): Modality.TEXT,
        frozenset({"image"}): Modality.IMAGE,
        frozenset({"text", "image"}): Modality.IMAGE_TEXT,
    }.get(modalities_of(task, PromptType.document))


def instruction_of(task: Any, side: PromptType | None) -> str:
    """Return a task's prompt; one that is not said to be for documents is for queries alone."""
    prompt = task.prompt or ""
    if isinstance(prompt, Mapping):
        return prompt.get(side.value, "") if side else ""
    return "" if side is PromptType.document else prompt


def document_text(row: Row) -> str:
    """Return title and text of a document, joined as mteb joins them."""
    return f"{row.get('title') or ''} {row.get('text') or ''}".strip()


def query_text(row: Row) -> str:
    """Return the text of a query, or of a conversation, with the instruction of its own."""
    text, instruction = row.get("text") or "", row.get("instruction") or ""
    if isinstance(text, list):
        return f"{instruction} {'; '.join(map(_turn, text))}".strip()
    return f"{text} {instruction}".strip()


def _turn(turn: str | Mapping[str, str]) -> str:
    return turn if isinstance(turn, str) else f"{turn['role']}: {turn['content']}"


def content_of(text: str, picture: object) -> Content:
    """Return content of a picture and a text, either of which may be missing.

    Raises:
        OSError: the picture's file cannot be read, or is none.
    """
    parts: list[Part] = [] if picture is None else [_image(picture)]
    return Content((*parts, text) if text.strip() else tuple(parts))


def contents_of_batches(
    batches: Iterable[Mapping[str, list[Any]]], modalities: frozenset[str]
) -> Iterator[Content]:
    """Yield the contents of batches, as mteb's data loaders give them to encoders.

    A batch has those of the task's modalities that are encoded now: zero-shot tasks of pictures
    have their labels encoded as texts alone.
    """
    for batch in batches:
        length = len(next(iter(batch.values())))
        texts = batch.get("text", [""] * length) if "text" in modalities else [""] * length
        pictures = batch.get("image", [None] * length) if "image" in modalities else [None] * length
        for text, picture in zip(texts, pictures, strict=True):
            yield content_of(text, picture)


def _image(picture: object) -> Image:
    if isinstance(picture, Pillow.Image):
        return Image(_png(picture))
    assert isinstance(picture, Mapping)
    data = picture["bytes"] or Path(picture["path"]).read_bytes()
    try:
        kind_of(data)
    except BrokenPicture:  # of another format than the mesh takes
        with Pillow.open(io.BytesIO(data)) as opened:
            return Image(_png(opened))
    return Image(data)


def _png(picture: Pillow.Image) -> bytes:
    file = io.BytesIO()
    shown = picture if picture.mode in ("RGB", "RGBA", "L") else picture.convert("RGBA")
    shown.save(file, "PNG", compress_level=1)
    return file.getvalue()
