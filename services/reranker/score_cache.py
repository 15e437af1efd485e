"""Scores that were given before: a score is a pure function, so it need not be computed twice."""

from __future__ import annotations

import hashlib

from cachetools import LRUCache

from mmesh.content import Content
from mmesh.models.protocol import JudgeInfo


class ScoreCache:
    """Scores by query, instruction, candidate, template and model; an LRU of `size` scores."""

    def __init__(self, size: int, judge: JudgeInfo) -> None:
        self._judge = f"{judge.fingerprint}\0{judge.template}\0".encode()
        self._scores: LRUCache[bytes, float] = LRUCache(size)

    def scope(self, query: Content, instruction: str) -> bytes:
        """Return what the keys of all candidates of a query have in common."""
        return hashlib.sha256(self._judge + query.digest() + instruction.encode()).digest()

    def get(self, key: bytes) -> float | None:
        """Return the score of `key`, which is a scope and a candidate's digest."""
        return self._scores.get(key)

    def put(self, key: bytes, score: float) -> None:
        """Remember a score, and forget the one that was not asked for the longest."""
        if self._scores.maxsize:
            self._scores[key] = score
