"""`LiteEncoder`: texts, pictures and illustrated texts as unit vectors of one space."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmesh.content import Content, Image, Modality, Role
from mmesh.models import images
from mmesh.models.encoders.lite import artefacts
from mmesh.models.encoders.lite.image import Head, ImageTower, Names
from mmesh.models.encoders.lite.sessions import Backend, open_session
from mmesh.models.encoders.lite.text import MAX_TOKENS, WIDTH, TextTower, TokenBatch, Tokens, unit
from mmesh.models.protocol import (
    IMAGE_BLANK,
    TEXT_UNKNOWN,
    EncoderInfo,
    FloatMatrix,
    Prepared,
)

NAME = "lite"
# Raised when code changes a vector that the files do not: pooling, mixing, resizing.
REVISION = 2
IMAGE_COST = 48
"""Tokens that take as long as one view of a picture, measured on one thread."""
TEXT_SHARE = {Role.QUERY: 0.65, Role.CANDIDATE: 0.5}
"""How much of an illustrated text's vector is its text."""
INSTRUCTION = "instruction"
"""What the manifest of a trained model says of how it reads instructions."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a trained model reads the instruction of a query."""

    before_text: bool = False
    """It reads instructions at all, at the start of the text."""
    picture_share: float = 0.0
    """How much of the vector of a query of pictures alone is its instruction."""

    def read(self, content: Content, role: Role, instruction: str) -> tuple[str, float]:
        """Return the text to embed, empty for none, and its share beside pictures."""
        asked = instruction.strip() if self.before_text and role is Role.QUERY else ""
        if content.texts:
            text = f"{asked} {content.text}" if asked else content.text
            return text, TEXT_SHARE[role]
        return (asked, self.picture_share) if self.picture_share else ("", 0.0)


@dataclass(frozen=True, slots=True)
class LiteInput:
    """What one input brings into a batch: its tokens, its pictures, or both."""

    tokens: Tokens | None = field(repr=False)
    views: tuple[NDArray[np.float32], ...] = field(repr=False)
    """The views of each picture, (v, 3, 224, 224)."""
    text_share: float


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of n inputs: all their views, and how many belong together."""

    views: NDArray[np.float32] = field(repr=False)
    """Of all pictures in a row, (v, 3, 224, 224)."""
    views_of_each: tuple[int, ...]
    """By picture."""
    pictures_of_each: tuple[int, ...]
    """By input."""

    @classmethod
    def of(cls, inputs: Sequence[LiteInput]) -> Pictures:
        """Return the pictures of inputs that have at least one each."""
        views = [each for one in inputs for each in one.views]
        pictures_of_each = tuple(len(one.views) for one in inputs)
        return cls(np.concatenate(views), tuple(map(len, views)), pictures_of_each)


@dataclass(frozen=True, slots=True)
class LiteBatch:
    """Inputs of one modality: their texts, their pictures, or both."""

    texts: TokenBatch | None
    pictures: Pictures | None
    text_shares: NDArray[np.float32]
    """How much of each input's vector is its text, (n, 1)."""


class LiteEncoder:
    """The embedded default encoder; as it ships it reads no instruction."""

    def __init__(
        self, text: TextTower, image: ImageTower, info: EncoderInfo, reading: Reading | None = None
    ) -> None:
        self._text = text
        self._image = image
        self._info = info
        self._reading = reading or Reading()

    @property
    def info(self) -> EncoderInfo:
        """Name, fingerprint, dim and limits; constant."""
        return self._info

    @property
    def text(self) -> TextTower:
        """The text tower, which late interaction shares."""
        return self._text

    @property
    def image(self) -> ImageTower:
        """The picture tower, which also names what it sees."""
        return self._image

    def prepare(self, content: Content, role: Role, instruction: str) -> Prepared:
        """Tokenise the joined texts and decode the pictures; thread-safe.

        Raises:
            InvalidImage: a picture cannot be decoded; its path starts with `content`.
        """
        text, share = self._reading.read(content, role, instruction)
        tokens = self._text.tokenise([text])[0] if content.texts or text else None
        views, blank = self._views(content)
        cost = (len(tokens.ids) if tokens else 0) + IMAGE_COST * sum(map(len, views))
        payload = LiteInput(tokens, views, share)
        truncated = tokens is not None and tokens.truncated
        group = "image_text" if tokens and views else "text" if tokens else "image"
        return Prepared(group, cost, payload, truncated, _notices(tokens, blank))

    def collate(self, batch: Sequence[Prepared]) -> LiteBatch:
        """Pad the texts and stack the pictures of inputs of one group; thread-safe."""
        inputs: list[LiteInput] = [prepared.payload for prepared in batch]
        tokens = [one.tokens for one in inputs if one.tokens is not None]
        return LiteBatch(
            TokenBatch.of(tokens) if tokens else None,
            Pictures.of(inputs) if inputs[0].views else None,
            np.array([[one.text_share] for one in inputs], np.float32),
        )

    def forward(self, collated: LiteBatch) -> FloatMatrix:
        """Return unit rows (n, 384), in order."""
        texts = self._text.embed_batch(collated.texts) if collated.texts else None
        pictures = self._pictures(collated.pictures) if collated.pictures else None
        if texts is None or pictures is None:
            only = pictures if texts is None else texts
            assert only is not None, "content has a part"
            return only
        share = collated.text_shares
        return unit(share * texts + (1 - share) * pictures)

    def _views(self, content: Content) -> tuple[tuple[NDArray[np.float32], ...], bool]:
        """Return the views of each picture, and whether one of them is blank."""
        found, blank = [], False
        for number, part in enumerate(content.parts):
            if isinstance(part, Image):
                image = images.decode(part.data, f"content.parts[{number}].image.data")
                found.append(self._image.views(image))
                blank = blank or self._image.is_blank(image, found[-1])
        return tuple(found), blank

    def _pictures(self, pictures: Pictures) -> FloatMatrix:
        """Return one row per input: the unit mean of the vectors of its pictures."""
        rows = self._image.embed(pictures.views)
        each = unit(_sums(rows, pictures.views_of_each))
        return unit(_sums(each, pictures.pictures_of_each))


def _notices(tokens: Tokens | None, blank: bool) -> tuple[str, ...]:
    found = [TEXT_UNKNOWN] if tokens is not None and tokens.all_unknown else []
    return (*found, IMAGE_BLANK) if blank else tuple(found)


def _sums(rows: FloatMatrix, counts: Sequence[int]) -> FloatMatrix:
    """Return the sums of the first `counts[0]` rows, of the next `counts[1]`, and so on."""
    starts = np.cumsum([0, *counts[:-1]])
    sums: FloatMatrix = np.add.reduceat(rows, starts, axis=0)
    return sums


def load_lite(
    backend: Backend = "onnxruntime", threads: int = 1, directory: Path = artefacts.DATA
) -> LiteEncoder:
    """Return the encoder with its files verified; `threads` are used for each forward pass.

    Raises:
        FailedPrecondition: the backend or the package with MiniLM's weights is not installed.
        DataLoss: a file is missing or damaged.
    """
    hashes = artefacts.verify(directory)
    text = load_text_tower(backend, threads, directory)
    image = load_image_tower(backend, threads, directory)
    manifest = artefacts.read_manifest(directory)
    reading = Reading(**manifest.get(INSTRUCTION, {}))
    return LiteEncoder(text, image, _info(hashes, directory, reading), reading)


def load_text_tower(backend: Backend, threads: int, directory: Path = artefacts.DATA) -> TextTower:
    """Return the text tower alone; the files are not verified."""
    session = open_session(artefacts.text_graph(directory), backend, threads=threads)
    return TextTower(directory / artefacts.TOKENIZER, session)


def load_image_tower(
    backend: Backend, threads: int, directory: Path = artefacts.DATA
) -> ImageTower:
    """Return the picture tower alone; the files are not verified."""
    graph = directory / artefacts.IMAGE_GRAPH
    session = open_session(graph, backend, threads=threads, keep_memory=True)
    head = Head.load(directory / artefacts.HEAD)
    classes = Names.load(directory / artefacts.CLASSES)
    vocabulary = partial(Names.load, directory / artefacts.VOCABULARY)
    return ImageTower(session, head, classes, vocabulary, threads)


def _info(hashes: Mapping[str, str], directory: Path, reading: Reading) -> EncoderInfo:
    return EncoderInfo(
        name=NAME if directory == artefacts.DATA else directory.resolve().name,
        fingerprint=fingerprint(hashes, reading),
        dim=WIDTH,
        modalities=frozenset(Modality),
        max_text_tokens=MAX_TOKENS,
        follows_instructions=reading.before_text,
        calibration=_calibration(directory / artefacts.CALIBRATION),
    )


def fingerprint(hashes: Mapping[str, str], reading: Reading | None = None) -> str:
    """Return a name that changes with the files or code that any vector depends on.

    The backend is no part of it: both compute in float32 and agree within 1e-5.
    """
    names = (artefacts.TEXT_GRAPH, artefacts.TOKENIZER, artefacts.IMAGE_GRAPH)
    parts = [hashes[name] for name in (*names, artefacts.HEAD, artefacts.CLASSES)]
    weights = hashes.get(artefacts.TEXT_WEIGHTS, artefacts.TEXT_WEIGHTS_SHA256)
    read = [] if reading in (None, Reading()) else [repr(reading)]
    text = " ".join([str(REVISION), weights, *parts, *read])
    return f"{NAME}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _calibration(path: Path) -> dict[Modality, FloatMatrix]:
    """Return what the shipped model brings; a trained one is calibrated when it is opened."""
    if not path.is_file():
        return {}
    with np.load(path) as file:
        return {kind: file[kind.value].astype(np.float32) for kind in Modality}
