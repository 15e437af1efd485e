"""Turns a query and a candidate into token ids that nobody's text can forge.

A judge's prompt is a frame of fixed text around slots. Special tokens come from the frame alone:
what users write is tokenised with special tokens read as plain text. It is tokenised in one piece
with the fixed text around it, so ordinary text gives the ids that the model's own tokenizer gives
for the whole prompt; a model for which it does not is warned about.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mmesh.content import Content
from mmesh.errors import FailedPrecondition, InputTooLong, InvalidField
from mmesh.models.judges.templates import SLOTS
from mmesh.models.text.plain import PlainText

logger = logging.getLogger(__name__)

MIN_CANDIDATE_TOKENS = 16
"""A candidate that is cut to fewer tokens of text than this is refused instead."""

_Ids = tuple[int, ...]
_Piece = str | _Ids
"""Plain text, or ids of special tokens."""
_SLOT = re.compile("{(" + "|".join(SLOTS) + ")}")


@dataclass(frozen=True, slots=True)
class Frame:
    """The fixed text of a prompt: `texts[0]`, the first slot, `texts[1]` and so on."""

    texts: tuple[str, ...]
    slots: tuple[str, ...]
    image: str
    """What stands for one picture; empty for a model without pictures."""
    pictures_first: bool = False
    """Pictures of a query or candidate stand before its texts, whatever their order."""
    between_texts: str = "\n"

    @classmethod
    def parse(
        cls, text: str, image: str, *, pictures_first: bool = False, between_texts: str = "\n"
    ) -> Frame:
        """Return the frame of `text`, in which `{query}` and the like are slots."""
        pieces = _SLOT.split(text)
        texts, slots = tuple(pieces[::2]), tuple(pieces[1::2])
        return cls(texts, slots, image, pictures_first, between_texts)

    @property
    def candidate_first(self) -> bool:
        """Whether the candidate, and so its pictures, stand before the query."""
        return self.slots.index("candidate") < self.slots.index("query")

    def identity(self, name: str, version: int) -> str:
        """Return name, version and hash, in the form of a template's."""
        return f"{name}@{version}:{hashlib.sha256(repr(self).encode()).hexdigest()[:12]}"


class PairPrompts(Protocol):
    """How a judge family writes pairs; safe to use from several threads."""

    @property
    def reads_images(self) -> bool:
        """Whether the model takes pictures."""

    @property
    def candidate_first(self) -> bool:
        """Whether the candidate's pictures stand before the query's."""

    def build(self, query: Content, instruction: str, candidate: Content) -> list[int]:
        """Return the ids of the prompt, with one placeholder per picture.

        Raises:
            InvalidField: the placeholders would not match the pictures.
        """

    def shortened(self, candidate: Content, excess: int, path: str) -> Content:
        """Return `candidate` without the last `excess` tokens of its text.

        Raises:
            InputTooLong: too little of the text would remain; `path` is the candidate's.
        """


class PromptBuilder:
    """Implements `PairPrompts` for one frame."""

    def __init__(
        self,
        tokenizer: Any,
        frame: Frame,
        instruction: str,
        image_token_id: int | None,
        *,
        ending: Sequence[int] = (),
        plain: PlainText | None = None,
    ) -> None:
        """Read `frame` with `tokenizer`; `instruction` stands in when the request has none.

        `ending` are ids that follow the frame. `plain` is for builders that share a tokenizer: it
        holds a copy of the vocabulary.

        Raises:
            FailedPrecondition: the frame has not one token for a picture.
        """
        self._frame, self._instruction = frame, instruction
        self._image_token_id = image_token_id
        self._plain = plain or PlainText(tokenizer)
        fixed = [_pieces(tokenizer, text) for text in frame.texts]
        self._fixed = [_opened(tokenizer, fixed[0]), *fixed[1:-1], [*fixed[-1], tuple(ending)]]
        self._image = _pieces(tokenizer, frame.image)
        if image_token_id is not None and _count(self._image, image_token_id) != 1:
            raise FailedPrecondition("the chat template does not write one token for a picture")
        self._compare_with(tokenizer, ending)

    @property
    def reads_images(self) -> bool:
        """Whether the model takes pictures."""
        return self._image_token_id is not None

    @property
    def candidate_first(self) -> bool:
        """Whether the candidate's pictures stand before the query's."""
        return self._frame.candidate_first

    def build(self, query: Content, instruction: str, candidate: Content) -> list[int]:
        """Return the ids of the prompt; see `PairPrompts`."""
        filling: Mapping[str, list[_Piece]] = {
            "instruction": [instruction.strip() or self._instruction],
            "query": [*self._content(query)],
            "candidate": [*self._content(candidate)],
        }
        pieces = [*self._fixed[0]]
        for slot, fixed in zip(self._frame.slots, self._fixed[1:], strict=True):
            pieces += [*filling[slot], *fixed]
        ids = self._ids(pieces)
        self._check_placeholders(ids, len(query.images) + len(candidate.images))
        return ids

    def shortened(self, candidate: Content, excess: int, path: str) -> Content:
        """Return `candidate` with less text; see `PairPrompts`."""
        room = sum(len(self._plain.ids(text)) for text in candidate.texts)
        if excess > room - min(room, MIN_CANDIDATE_TOKENS):
            raise InputTooLong(path, "does not fit beside the query; shorten either one")
        parts = []
        for part in reversed(candidate.parts):
            if isinstance(part, str) and excess > 0:
                length = len(self._plain.ids(part))
                part = self._plain.shortened(part, excess)
                excess -= length
            if part:
                parts.append(part)
        return Content(tuple(reversed(parts)))

    def _compare_with(self, tokenizer: Any, ending: Sequence[int]) -> None:
        """Warn if the tokenizer reads a whole prompt otherwise, as some do after special tokens."""
        words = [f"{text}x" for text in self._frame.texts[:-1]]
        whole = tokenizer("".join([*words, self._frame.texts[-1]]), add_special_tokens=False)
        expected = [*whole["input_ids"], *ending]
        ids = self.build(Content.of("x"), "x", Content.of("x"))
        if ids[-len(expected) :] != expected:
            logger.warning("prompts differ from the tokenizer's own by spaces at special tokens")

    def _ids(self, pieces: Sequence[_Piece]) -> list[int]:
        ids: list[int] = []
        for piece in _merged(pieces):
            ids += self._plain.ids(piece) if isinstance(piece, str) else piece
        return ids

    def _content(self, content: Content) -> Iterator[_Piece]:
        parts = list(content.parts)
        if self._frame.pictures_first:
            parts = [*content.images, *content.texts]
        after_text = False
        for part in parts:
            if isinstance(part, str):
                yield self._frame.between_texts + part if after_text else part
            else:
                yield from self._image
            after_text = isinstance(part, str)

    def _check_placeholders(self, ids: Sequence[int], pictures: int) -> None:
        if self._image_token_id is None and pictures:
            raise InvalidField("candidate or query", "holds a picture; this model reads text only")
        placeholders = ids.count(self._image_token_id) if self.reads_images else 0
        if placeholders != pictures:
            raise InvalidField(
                "candidate or query", f"has {pictures} pictures but {placeholders} placeholders"
            )


def word_id(tokenizer: Any, word: str) -> int:
    """Return the id of a word that is one token.

    Raises:
        FailedPrecondition: the tokenizer writes it with several tokens, or does not know it.
    """
    ids: list[int] = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise FailedPrecondition(
            f"{word!r} is {len(ids)} tokens or unknown to this model; it must be one: choose "
            "another template or family"
        )
    return ids[0]


def _pieces(tokenizer: Any, text: str) -> list[_Piece]:
    """Cut `text` into plain text and special tokens, as the tokenizer sees them."""
    if not text:
        return []
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    pieces: list[_Piece] = []
    runs = itertools.groupby(
        zip(read["input_ids"], read["offset_mapping"], strict=True),
        key=lambda token: token[0] in special,
    )
    for is_special, run in runs:
        tokens = list(run)
        plain = text[tokens[0][1][0] : tokens[-1][1][1]]
        pieces.append(tuple(token for token, _ in tokens) if is_special else plain)
    return pieces


def _opened(tokenizer: Any, lead: list[_Piece]) -> list[_Piece]:
    """Return `lead` after the tokens that the tokenizer puts before any text, such as BOS."""
    marked: list[int] = tokenizer("x")["input_ids"]
    bare: list[int] = tokenizer("x", add_special_tokens=False)["input_ids"]
    opening = tuple(marked[: marked.index(bare[0])])
    begun = lead and isinstance(lead[0], tuple) and lead[0][: len(opening)] == opening
    return lead if begun or not opening else [opening, *lead]


def _merged(pieces: Sequence[_Piece]) -> Iterator[_Piece]:
    """Join neighbouring texts: tokens may reach across the seam."""
    for is_text, run in itertools.groupby(pieces, key=lambda piece: isinstance(piece, str)):
        if is_text:
            yield "".join(str(piece) for piece in run)
        else:
            yield from run


def _count(pieces: Sequence[_Piece], token: int) -> int:
    return sum(piece.count(token) for piece in pieces if isinstance(piece, tuple))
