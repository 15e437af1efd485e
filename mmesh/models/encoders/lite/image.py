"""The picture tower: EfficientNet-Lite0, mapped into the space of the texts.

A picture's vector is the sum of two guesses, each a unit vector. The first is the mean of the
names of the likeliest ImageNet classes (ConSE): it knows photographs. The second is a small
network trained on drawings and their names (the head). `ImageTower.words` turns the guesses back
into names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmesh.models.encoders.lite.sessions import Session
from mmesh.models.encoders.lite.text import unit
from mmesh.models.protocol import FloatMatrix

SIDE = 224
NEARLY_SQUARE = 1.1
"""Longer side over shorter side up to which the middle square is as good as the whole picture."""
CLASS_SHARE = 0.35
LIKELY_CLASSES = 20
TEMPERATURE = 1.5
NAMES_OF_EACH = 5
VIEWS_A_THREAD = 2
"""Views that a thread sees at once: with 4 or more, what the layers pass on leaves the cache."""

# The weights were trained on (value - 127) / 128.
_MIDDLE, _SCALE = np.float32(127), np.float32(128)


@dataclass(frozen=True, slots=True)
class Head:
    """A network with one hidden layer over standardised picture features."""

    mean: FloatMatrix
    spread: FloatMatrix
    inner: FloatMatrix
    inner_bias: FloatMatrix
    outer: FloatMatrix
    outer_bias: FloatMatrix

    @classmethod
    def load(cls, path: Path) -> Head:
        """Read the six arrays; they are stored as float16."""
        with np.load(path) as file:
            return cls(**{name: file[name].astype(np.float32) for name in file.files})

    def __call__(self, features: FloatMatrix) -> FloatMatrix:
        """Return unit vectors (n, 384) for features (n, 1280)."""
        standard = (features - self.mean) / self.spread
        hidden = gelu((standard @ self.inner + self.inner_bias).astype(np.float32))
        return unit(hidden @ self.outer + self.outer_bias)


@dataclass(frozen=True, slots=True)
class Names:
    """Names, each with the vector of its text."""

    names: tuple[str, ...]
    vectors: FloatMatrix = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> Names:
        """Read names and vectors; the vectors are stored as float16."""
        with np.load(path) as file:
            return cls(tuple(file["names"].tolist()), file["vectors"].astype(np.float32))


class ImageTower:
    """EfficientNet-Lite0 and its head: pixels to features, vectors and words."""

    def __init__(
        self,
        session: Session,
        head: Head,
        classes: Names,
        vocabulary: Callable[[], Names],
        threads: int = 1,
    ) -> None:
        self._session = session
        self._at_once = VIEWS_A_THREAD * threads
        self._head = head
        self._classes = classes
        self._vocabulary = cache(vocabulary)  # only `words` needs it, and so only judges do

    @property
    def class_names(self) -> FloatMatrix:
        """The vectors of the names of the classes (1000, 384)."""
        return self._classes.vectors

    @staticmethod
    def prepare(image: Image.Image) -> NDArray[np.float32]:
        """Return an RGB picture as input of the model, (3, 224, 224)."""
        pixels = np.asarray(fit(image), np.float32)
        return np.ascontiguousarray(((pixels - _MIDDLE) / _SCALE).transpose(2, 0, 1))

    @staticmethod
    def views(image: Image.Image) -> NDArray[np.float32]:
        """Return what the model looks at, (v, 3, 224, 224): 1 view, or 2 where one loses much.

        The first is the middle square; the second, of a picture far from square, is all of it on
        white. A picture's vector is the unit sum over its views.
        """
        chosen = [fit(image)]
        if max(image.size) > NEARLY_SQUARE * min(image.size):
            chosen.append(whole(image))
        return np.stack([ImageTower.prepare(view) for view in chosen])

    @staticmethod
    def is_blank(image: Image.Image, views: NDArray[np.float32]) -> bool:
        """Tell whether all of a picture is of one colour as the model sees it.

        A second view is no measure: it lies on white.
        """
        if np.ptp(views[0], axis=(-2, -1)).any():
            return False
        return len(views) == 1 or shrunk(image).getcolors(maxcolors=1) is not None

    def features(self, pixels: NDArray[np.float32]) -> tuple[FloatMatrix, FloatMatrix]:
        """Return the last layer (n, 1280) and the class logits (n, 1000) of prepared pictures."""
        starts = range(0, len(pixels), self._at_once)
        slices = [pixels[start : start + self._at_once] for start in starts]
        outputs = [self._session.run({"pixels": views}) for views in slices]
        features, logits = (
            np.concatenate([each[name] for each in outputs]) for name in ("features", "logits")
        )
        return features, logits

    def embed(self, pixels: NDArray[np.float32]) -> FloatMatrix:
        """Return unit vectors (n, 384) of prepared pictures (n, 3, 224, 224)."""
        return self.vectors(*self.features(pixels))

    def vectors(self, features: FloatMatrix, logits: FloatMatrix) -> FloatMatrix:
        """Return unit vectors (n, 384) from what `features` returned."""
        return mix(class_vectors(logits, self._classes.vectors), self._head(features))

    def words(self, pixels: NDArray[np.float32], limit: int = 7) -> list[list[str]]:
        """Return up to `limit` different names for each prepared picture, the best first.

        The likeliest ImageNet classes and the nearest names of the vocabulary take turns.
        """
        features, logits = self.features(pixels)
        vectors = self.vectors(features, logits)
        seen = best_names(logits, self._classes.names)
        known = self._vocabulary()
        near = best_names(vectors @ known.vectors.T, known.names)
        return [take_turns(*pair)[:limit] for pair in zip(seen, near, strict=True)]


def fit(image: Image.Image) -> Image.Image:
    """Return the largest square in the middle of a picture, resized to what the model sees."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box, reducing_gap=3.0)


def whole(image: Image.Image) -> Image.Image:
    """Return all of a picture in the middle of a white square of the size that the model sees."""
    small = shrunk(image)
    canvas = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    canvas.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return canvas


def shrunk(image: Image.Image) -> Image.Image:
    """Return all of a picture, its longer side as long as what the model sees."""
    scale = SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def gelu(values: FloatMatrix) -> FloatMatrix:
    """Return the tanh form of the Gaussian error linear unit, which the head was trained with."""
    inner = np.float32(0.7978845608) * (values + np.float32(0.044715) * values**3)
    result: FloatMatrix = np.float32(0.5) * values * (1 + np.tanh(inner))
    return result


def class_vectors(logits: FloatMatrix, classes: FloatMatrix) -> FloatMatrix:
    """Return the unit mean of the class names, weighted by the likeliest classes (ConSE)."""
    scaled = logits / np.float32(TEMPERATURE)
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    least = np.partition(weights, -LIKELY_CLASSES, axis=1)[:, -LIKELY_CLASSES, None]
    return unit(np.where(weights >= least, weights, 0) @ classes)


def mix(by_class: FloatMatrix, by_head: FloatMatrix) -> FloatMatrix:
    """Return the unit sum of both guesses."""
    share = np.float32(CLASS_SHARE)
    return unit(share * by_class + (1 - share) * by_head)


def best_names(scores: FloatMatrix, names: tuple[str, ...]) -> list[list[str]]:
    """Return the five names with the highest score in each row, the best first."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :NAMES_OF_EACH]
    return [[names[place] for place in row] for row in order]


def take_turns(first: Iterable[str], second: Iterable[str]) -> list[str]:
    """Return both sequences interleaved, each name once."""
    turns = chain.from_iterable(zip_longest(first, second))
    return list(dict.fromkeys(name for name in turns if name is not None))
