"""What model families implement: encoders and judges (rerankers).

A researcher's own model is one class: see docs/how-to/bring-a-model.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmesh.content import Content, Modality, Role

FloatMatrix = NDArray[np.float32]
TEXT_UNKNOWN = "TEXT_UNKNOWN"
"""Notice: no token of the text is known, so its vector is that of any other such text."""
IMAGE_BLANK = "IMAGE_BLANK"
"""Notice: a picture is of one colour only, as the model sees it."""


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """What callers may know of an encoder; `fingerprint` changes whenever any vector would."""

    name: str
    fingerprint: str
    dim: int
    modalities: frozenset[Modality]
    max_text_tokens: int
    follows_instructions: bool
    calibration: Mapping[Modality, FloatMatrix] = field(default_factory=dict, repr=False)
    """Vectors (n, dim) of a reference pool as queries, by modality; row i shows thing i in each."""
    calibration_candidates: Mapping[Modality, FloatMatrix] = field(default_factory=dict, repr=False)
    """The same as candidates, for the modalities whose two roles the model reads differently."""
    packs: bool = False
    """Inputs of a batch lie end to end, so one costs the same beside any other; else all are padded
    to the dearest."""
    passes: int = 1
    """Forward passes that may be under way at a time, each on a thread of its own."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One input made ready for `forward`: tokens and pixels, with what it costs."""

    group: str
    """Only inputs of one group may share a batch; its first word is one of few, such as `text`."""
    cost: int
    """Work in text tokens; a picture counts as the tokens that take as long."""
    payload: Any = field(repr=False)
    truncated: bool = False
    """The text was longer than the model reads."""
    notices: tuple[str, ...] = ()
    """What callers should know of it besides, such as `TEXT_UNKNOWN`."""

    @property
    def label(self) -> str:
        """The first word of the group, for metrics: what follows may be up to whoever asks."""
        return self.group.partition(" ")[0]


class OutOfDeviceMemory(Exception):
    """A forward pass did not fit the device; the same inputs in smaller batches may."""


class EncoderModel(Protocol):
    """A model family that turns content into unit vectors.

    A vector is a pure function of content, role, instruction and fingerprint: alone and in any
    batch the same, within 1e-5 in float32.
    """

    @property
    def info(self) -> EncoderInfo:
        """Name, fingerprint, dim and limits; constant."""

    def prepare(self, content: Content, role: Role, instruction: str) -> Prepared:
        """Decode, resize and tokenise; called on worker threads, so it must be thread-safe.

        Raises:
            InvalidField: a part cannot be read, named by a path that starts with `content`.
        """

    def collate(self, batch: Sequence[Prepared]) -> Any:
        """Return what `forward` takes for these inputs of one group: padded and stacked.

        Called on a worker thread, while the batch before it runs; thread-safe.
        """

    def forward(self, collated: Any) -> FloatMatrix:
        """Return unit rows (n, dim) in the order of the batch; on `info.passes` threads.

        Raises:
            OutOfDeviceMemory: the batch is too large for the device.
        """


def encode_together(model: EncoderModel, batch: Sequence[Prepared]) -> FloatMatrix:
    """Return unit rows (n, dim) for inputs of one group, in one forward pass."""
    return model.forward(model.collate(batch))


@dataclass(frozen=True, slots=True)
class JudgeInfo:
    """What the gateway must know of a judge to order by it."""

    name: str
    fingerprint: str
    template: str
    """Name, version and hash of the prompt template; empty for a judge without one."""
    weights: Mapping[Modality, float]
    """By candidate modality: share of the judge's score when mixed with the first stage's, 0..1."""
    query_weights: Mapping[Modality, float]
    """By query modality: factor of the above; 0 where it does no better than the first stage."""
    compares_modalities: bool
    """Its scores for candidates of two modalities may be compared."""


class JudgeModel(Protocol):
    """A model family that says how well candidates answer a query.

    A score is a pure function of query, instruction, candidate and fingerprint: alone, in any
    batch and in any order the same, within 1e-4.
    """

    @property
    def info(self) -> JudgeInfo:
        """Name, fingerprint, template and weights; constant."""

    async def score(
        self, query: Content, instruction: str, candidates: Sequence[Content]
    ) -> list[float]:
        """Return one score per candidate, in order; higher is better.

        Raises:
            InvalidField: a part cannot be read, named by a path that starts with `query` or
                `candidates[i]`.
            Unavailable: the engine is gone.
        """

    def image_tokens(self, content: Content) -> int:
        """Return how many tokens the pictures of `content` take, about, from their headers.

        0 for a judge to which pictures cost no tokens. Raises nothing for broken pictures.
        """

    def is_healthy(self) -> bool:
        """Tell whether `score` can work; False is final for this object."""

    async def close(self) -> None:
        """Free the engine; running calls end first or fail with `Unavailable`."""
