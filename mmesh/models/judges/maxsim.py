"""`maxsim`: late interaction on the token vectors of the embedded text model.

A candidate's score is the mean, over the tokens of the query, of the largest cosine to any of its
own tokens (Khattab and Zaharia, ColBERT, SIGIR 2020). It needs no weights of its own. Pictures
take part through the words of their likeliest classes, which say no more than the picture's vector
does, so they count little.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from mmesh.content import Content, Image, Modality
from mmesh.models import images
from mmesh.models.encoders.lite.image import ImageTower
from mmesh.models.encoders.lite.model import LiteEncoder, load_lite
from mmesh.models.encoders.lite.text import TextTower, Tokens
from mmesh.models.protocol import JudgeInfo

TokenVectors = NDArray[np.float16]
"""Unit vectors (t, 384) of the tokens of one content, rounded so that more are remembered."""
BATCH_TOKENS = 1024
CACHE_BYTES = 256 << 20
QUERY, CANDIDATES = "query", "candidates"

WEIGHTS = {Modality.TEXT: 1.0, Modality.IMAGE: 0.15, Modality.IMAGE_TEXT: 0.5}
"""For pictures 0.3 costs 0.7 points of recall at 10 on clip art (benchmarks/recall_lite.py)."""
QUERY_WEIGHTS = {Modality.TEXT: 1.0, Modality.IMAGE: 0.0, Modality.IMAGE_TEXT: 0.0}
"""For queries with pictures no gain was measured, so the first stage decides."""


class MaxSimJudge:
    """Judges with token vectors, which it remembers by content."""

    def __init__(self, text: TextTower, image: ImageTower, fingerprint: str) -> None:
        self._text, self._image = text, image
        self._info = JudgeInfo("maxsim", fingerprint, "", WEIGHTS, QUERY_WEIGHTS, False)
        self._thread = ThreadPoolExecutor(1, "maxsim")
        self._cache = _VectorCache(CACHE_BYTES)

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
        """End the worker thread."""
        await asyncio.to_thread(self._thread.shutdown)

    async def score(
        self, query: Content, instruction: str, candidates: Sequence[Content]
    ) -> list[float]:
        """Return one score in -1..1 per candidate, in order; the instruction plays no part.

        Raises:
            InvalidImage: a picture cannot be decoded.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._score, query, candidates)

    def _score(self, query: Content, candidates: Sequence[Content]) -> list[float]:
        paths = [QUERY, *(f"{CANDIDATES}[{number}]" for number in range(len(candidates)))]
        vectors = self._vectors([query, *candidates], paths)
        return [maxsim(vectors[0], rows) for rows in vectors[1:]]

    def _vectors(self, contents: Sequence[Content], paths: Sequence[str]) -> list[TokenVectors]:
        """Return unit token vectors (t, 384) of each content."""
        keys = [content.digest() for content in contents]
        known = {key: self._cache.get(key) for key in keys}
        missing = {
            key: self._words(content, path)
            for key, content, path in zip(keys, contents, paths, strict=True)
            if known[key] is None
        }
        for key, new in self._encode(missing).items():
            known[key] = new
            self._cache.put(key, new)
        return [rows for key in keys if (rows := known[key]) is not None]

    def _words(self, content: Content, path: str) -> str:
        """Return the content's texts, followed by what can be seen in its pictures."""
        pixels = [
            self._image.prepare(images.decode(part.data, f"{path}.parts[{number}].image.data"))
            for number, part in enumerate(content.parts)
            if isinstance(part, Image)
        ]
        seen = self._image.words(np.stack(pixels)) if pixels else []
        return "\n".join([*content.texts, *(", ".join(words) for words in seen)])

    def _encode(self, words: dict[bytes, str]) -> dict[bytes, TokenVectors]:
        """Encode texts in batches of similar length, so that little is spent on padding."""
        tokens = dict(zip(words, self._text.tokenise(list(words.values())), strict=True))
        order = sorted(tokens, key=lambda key: len(tokens[key].ids))
        encoded: dict[bytes, TokenVectors] = {}
        for batch in _batches(order, tokens):
            rows = self._text.token_vectors([tokens[key] for key in batch])
            encoded |= zip(batch, (one.astype(np.float16) for one in rows), strict=True)
        return encoded


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


class _VectorCache:
    """Token vectors by content, the least recently used forgotten first."""

    def __init__(self, size_bytes: int) -> None:
        self._rows: OrderedDict[bytes, TokenVectors] = OrderedDict()
        self._free = size_bytes

    def get(self, key: bytes) -> TokenVectors | None:
        rows = self._rows.get(key)
        if rows is None:
            return None
        self._rows.move_to_end(key)
        return rows

    def put(self, key: bytes, rows: TokenVectors) -> None:
        if key not in self._rows:
            self._rows[key] = rows
            self._free -= rows.nbytes
        while self._free < 0 and self._rows:
            _, old = self._rows.popitem(last=False)
            self._free += old.nbytes


def load_maxsim(*, threads: int) -> MaxSimJudge:
    """Return the judge with the files of `lite` verified; see `load_lite` for what it raises."""
    encoder: LiteEncoder = load_lite(threads=threads)
    return MaxSimJudge(encoder.text, encoder.image, f"maxsim-{encoder.info.fingerprint}")
