"""The text tower: MiniLM-L6-v2, as vectors of texts and as vectors of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mmesh.models.encoders.lite.sessions import Session
from mmesh.models.protocol import FloatMatrix
from mmesh.models.text.plain import ids_of

MAX_TOKENS = 256
"""Tokens that the model reads, with its two marks."""
WIDTH = 384

_FIRST, _LAST, _PADDING, _UNKNOWN = 101, 102, 0, 100
_WORDS = MAX_TOKENS - 2
# A head this long has enough tokens of nearly every text; see `_token_ids`.
_HEAD_LENGTH = 8192
_PIECES_PER_WORD = 100


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text as token ids, between the marks that the model expects."""

    ids: tuple[int, ...] = field(repr=False)
    truncated: bool
    """The text was longer than the model reads."""

    @property
    def all_unknown(self) -> bool:
        """Whether there is none that the vocabulary has."""
        return all(token == _UNKNOWN for token in self.ids[1:-1])


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Texts padded to the longest: token ids (n, t), and 1 where a token is, 0 where padding."""

    ids: NDArray[np.int64] = field(repr=False)
    mask: NDArray[np.int64] = field(repr=False)

    @classmethod
    def of(cls, texts: Sequence[Tokens]) -> TokenBatch:
        """Return the texts, in order, as one batch."""
        shape = (len(texts), max(len(tokens.ids) for tokens in texts))
        ids, mask = np.full(shape, _PADDING, np.int64), np.zeros(shape, np.int64)
        for row, tokens in enumerate(texts):
            ids[row, : len(tokens.ids)] = tokens.ids
            mask[row, : len(tokens.ids)] = 1
        return cls(ids, mask)


class TextTower:
    """MiniLM: tokenises, and turns tokens into vectors of width 384."""

    def __init__(self, tokenizer: Path, session: Session) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._session = session

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the tokens of each text, in order; safe to call from several threads.

        Names of special tokens in a text, such as `[SEP]`, are ordinary characters.
        """
        return [self._tokens(text) for text in texts]

    def embed(self, texts: Sequence[Tokens]) -> FloatMatrix:
        """Return unit vectors (n, 384): the mean over the tokens of each text."""
        return self.embed_batch(TokenBatch.of(texts))

    def embed_batch(self, batch: TokenBatch) -> FloatMatrix:
        """Return unit vectors (n, 384) of texts that are padded already."""
        total = np.einsum("ntw,nt->nw", self._states(batch), batch.mask.astype(np.float32))
        return unit(total / batch.mask.sum(axis=1, keepdims=True))

    def token_vectors(self, texts: Sequence[Tokens]) -> list[FloatMatrix]:
        """Return unit vectors (t, 384) of the tokens of each text, without the marks."""
        rows = zip(self._states(TokenBatch.of(texts)), texts, strict=True)
        return [unit(row[1 : len(tokens.ids) - 1]) for row, tokens in rows]

    def _tokens(self, text: str) -> Tokens:
        ids = self._token_ids(text)
        kept = (_FIRST, *ids[:_WORDS], _LAST)
        return Tokens(kept, truncated=len(ids) > _WORDS)

    def _token_ids(self, text: str) -> list[int]:
        """Return the ids of `text`, at least as many as the model reads.

        A cut can only change the last word of the head, which has at most 100 pieces; so a head
        with more ids than that beyond the limit begins with the same ids as the whole text.
        """
        text, length = text.lstrip(), _HEAD_LENGTH
        while True:
            ids = ids_of(self._tokenizer, text[:length])
            if length >= len(text) or len(ids) > _WORDS + _PIECES_PER_WORD:
                return ids
            length *= 2

    def _states(self, batch: TokenBatch) -> NDArray[np.float32]:
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
        return self._session.run(inputs)["last_hidden_state"]


def unit(rows: NDArray[np.float32]) -> FloatMatrix:
    """Return each row divided by its length; rows of zeros stay zeros."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    scaled: FloatMatrix = (rows / np.maximum(length, 1e-12)).astype(np.float32)
    return scaled
