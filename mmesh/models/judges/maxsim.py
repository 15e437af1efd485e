"""`maxsim`: late interaction on the token vectors of the embedded text model.

A candidate's score is the mean, over the tokens of the query, of the largest cosine to any of its
own tokens (Khattab and Zaharia, ColBERT, SIGIR 2020). It needs no weights of its own. Pictures
take part through the words of their likeliest classes, which say no more than the picture's vector
does, so they count little.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from mmesh.content import Content, Image, Modality
from mmesh.errors import DeadlineExceeded
from mmesh.models import images
from mmesh.models.containment import contained
from mmesh.models.content_threads import ContentThreads
from mmesh.models.encoders.lite.image import ImageTower
from mmesh.models.encoders.lite.model import LiteEncoder, load_lite
from mmesh.models.encoders.lite.text import TextTower, Tokens
from mmesh.models.protocol import JudgeInfo

TokenVectors = NDArray[np.float16]
"""Unit vectors (t, 384) of the tokens of one content, rounded so that more are remembered."""
_Known = dict[bytes, TokenVectors]
_Words = Mapping[bytes, str]
BATCH_TOKENS = 1024
ENTRY_BYTES = 256
"""Of an entry of the cache besides its vectors."""
QUERY, CANDIDATES = "query", "candidates"

WEIGHTS = {Modality.TEXT: 1.0, Modality.IMAGE: 0.15, Modality.IMAGE_TEXT: 0.5}
"""For pictures 0.3 costs 0.7 points of recall at 10 on clip art (benchmarks/recall_lite.py)."""
QUERY_WEIGHTS = {Modality.TEXT: 1.0, Modality.IMAGE: 0.0, Modality.IMAGE_TEXT: 0.0}
"""For queries with pictures no gain was measured, so the first stage decides."""

Answer = TypeVar("Answer")
Item = TypeVar("Item")


class MaxSimJudge:
    """Judges with token vectors, which it remembers by content."""

    def __init__(
        self, text: TextTower, image: ImageTower, fingerprint: str, cache_bytes: int
    ) -> None:
        self._text, self._image = text, image
        self._info = JudgeInfo("maxsim", fingerprint, "", WEIGHTS, QUERY_WEIGHTS, False)
        self._thread, self._readers = ThreadPoolExecutor(1, "maxsim"), ContentThreads(2, "read")
        self._cache: LRUCache[bytes, TokenVectors] = LRUCache(cache_bytes, _size_of)
        """For the thread only."""

    @property
    def info(self) -> JudgeInfo:
        """Name, fingerprint, template and weights; constant."""
        return self._info

    def image_tokens(self, content: Content) -> int:
        """Return 0: it reads words, those of the classes of pictures among them."""
        return 0

    def is_healthy(self) -> bool:
        """Tell whether it can judge: always."""
        return True

    async def close(self) -> None:
        """End the worker threads."""
        self._readers.close()
        await asyncio.to_thread(self._thread.shutdown)

    async def score(
        self, query: Content, instruction: str, candidates: Sequence[Content]
    ) -> list[float]:
        """Return one score in -1..1 per candidate, in order; the instruction plays no part.

        Cancelling this call ends its work before the next content, batch or comparison.

        Raises:
            InvalidImage: a picture cannot be decoded.
        """
        contents, is_left = [query, *candidates], threading.Event()
        try:
            keys, known = await self._on_thread(self._look_up, contents)
            words: dict[bytes, str] = {}
            for number, (key, content) in enumerate(zip(keys, contents, strict=True), -1):
                if key not in known and key not in words:
                    path = QUERY if number < 0 else f"{CANDIDATES}[{number}]"
                    words[key] = await self._words(content, path)
            return await self._on_thread(self._score, keys, known, words, is_left)
        finally:
            is_left.set()

    async def _on_thread(self, function: Callable[..., Answer], *args: object) -> Answer:
        work = contained()(function)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def _look_up(self, contents: Sequence[Content]) -> tuple[list[bytes], _Known]:
        """Return the keys of contents, and the vectors of those that are remembered."""
        keys = [content.digest() for content in contents]
        return keys, {key: rows for key in keys if (rows := self._cache.get(key)) is not None}

    async def _words(self, content: Content, path: str) -> str:
        """Return the content's texts, followed by what can be seen in its pictures."""
        seen: list[list[str]] = []
        if content.images:  # decoded just before they are seen, so that few are held at a time
            pixels = await self._readers.run([content], self._pixels, content, path)
            seen = await self._on_thread(self._image.words, pixels)
        return "\n".join([*content.texts, *(", ".join(words) for words in seen)])

    def _pixels(self, content: Content, path: str) -> NDArray[np.float32]:
        pictures = [
            self._image.prepare(images.decode(part.data, f"{path}.parts[{number}].image.data"))
            for number, part in enumerate(content.parts)
            if isinstance(part, Image)
        ]
        return np.stack(pictures)

    def _score(
        self, keys: Sequence[bytes], known: _Known, words: _Words, is_left: threading.Event
    ) -> list[float]:
        known = {**known, **self._encode(words, is_left)}
        asked, *vectors = [known[key] for key in keys]
        return [maxsim(asked, rows) for rows in _wanted(vectors, is_left)]

    def _encode(self, words: _Words, is_left: threading.Event) -> dict[bytes, TokenVectors]:
        """Encode texts in batches of similar length, so that little is spent on padding.

        What is done is remembered, also where the caller goes away before the rest is.
        """
        tokens = {
            key: self._text.tokenise([words[key]])[0] for key in _wanted(list(words), is_left)
        }
        order = sorted(tokens, key=lambda key: len(tokens[key].ids))
        encoded: dict[bytes, TokenVectors] = {}
        for batch in _wanted(_batches(order, tokens), is_left):
            rows = self._text.token_vectors([tokens[key] for key in batch])
            for key, one in zip(batch, rows, strict=True):
                encoded[key] = vectors = one.astype(np.float16)
                if _size_of(vectors) <= self._cache.maxsize:
                    self._cache[key] = vectors
        return encoded


def _wanted(items: Iterable[Item], is_left: threading.Event) -> Iterator[Item]:
    """Yield items while the caller waits; raise `DeadlineExceeded` when it has gone."""
    for item in items:
        if is_left.is_set():
            raise DeadlineExceeded("its caller went away while it was judged")
        yield item


def maxsim(query: TokenVectors, candidate: TokenVectors) -> float:
    """Return the mean over query rows (q, d) of the largest cosine to a candidate row (t, d)."""
    if not len(query) or not len(candidate):
        return 0.0
    cosines = query.astype(np.float32) @ candidate.astype(np.float32).T
    return float(cosines.max(axis=1).mean())


def _batches(order: Sequence[bytes], tokens: dict[bytes, Tokens]) -> list[list[bytes]]:
    """Cut keys, sorted by length, into batches of at most `BATCH_TOKENS` with padding."""
    batches: list[list[bytes]] = []
    for key in order:
        longest = len(tokens[key].ids)
        if not batches or longest * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(key)
    return batches


def _size_of(rows: TokenVectors) -> int:
    return rows.nbytes + ENTRY_BYTES


def load_maxsim(*, threads: int, cache_mib: int = 256) -> MaxSimJudge:
    """Return the judge with the files of `lite` verified; see `load_lite` for what it raises."""
    encoder: LiteEncoder = load_lite(threads=threads)
    fingerprint = f"maxsim-{encoder.info.fingerprint}"
    return MaxSimJudge(encoder.text, encoder.image, fingerprint, cache_mib << 20)
