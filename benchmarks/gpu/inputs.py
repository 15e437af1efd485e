"""What the sections encode: texts and pictures that are never the same twice."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmesh import Content

WORDS = (
    "red", "green", "blue", "square", "circle", "line", "on", "black", "white",
    "ground", "cat", "dog", "house", "tree", "photo", "drawing", "text", "pictures",
    "both", "judge", "search", "results", "find", "candidate", "that", "answers", "query",
    "task", "or", "the", "a", "of",
)  # fmt: skip
"""Each is one token of the tokenizers that `models` makes."""


class Inputs:
    """A maker of contents; `scale` shortens all texts and shrinks all pictures, for a CPU."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        self._random = np.random.default_rng(seed)
        self._scale = scale

    def alike(self, count: int, words: int = 256) -> list[Content]:
        """Return texts of about as many words each."""
        words = max(2, round(words * self._scale))
        return self._of_words([words] * count)

    def lognormal(self, count: int, median: int = 96) -> list[Content]:
        """Return texts as a web crawl has them: half below `median` words, a few very long."""
        lengths = self._random.lognormal(np.log(median * self._scale), 0.9, count)
        return self._of_words(np.clip(lengths, 2, 2048 * self._scale).astype(int))

    def queries(self, count: int) -> list[Content]:
        """Return texts of 4 to 20 words."""
        return self._of_words(self._random.integers(4, 21, count))

    def pictures(self, count: int, side: int = 768) -> list[Content]:
        """Return JPEGs of `side` pixels; 768 become 576 tokens of Qwen3-VL."""
        side = max(64, round(side * self._scale**0.5 / 32) * 32)
        coarse = self._random.integers(0, 256, (count, side // 16, side // 16, 3), np.uint8)
        with ThreadPoolExecutor() as pool:
            return [Content.of(data) for data in pool.map(partial(_jpeg, side), coarse)]

    def mixed(self, count: int) -> list[Content]:
        """Return four texts to a picture, in a random order."""
        mixed = [*self.lognormal(count - count // 5), *self.pictures(count // 5)]
        return [mixed[place] for place in self._random.permutation(count)]

    def _of_words(self, lengths: Sequence[int]) -> list[Content]:
        pick = self._random.integers
        return [
            Content.of(" ".join(WORDS[n] for n in pick(len(WORDS), size=length)))
            for length in lengths
        ]


def _jpeg(side: int, coarse: NDArray[np.uint8]) -> bytes:
    data = io.BytesIO()
    picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    picture.save(data, "JPEG", quality=85)
    return data.getvalue()
