"""Texts as token ids between the marks that a text tower expects, cut at what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mmesh.errors import FailedPrecondition
from mmesh.models.text.instructions import check_instruction_length
from mmesh.models.text.plain import PlainText

_NOWHERE = "\U0010fffd"
"""A character that is in no vocabulary; tokenizers that fall back on bytes know it all the same."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text as ids, marks included."""

    ids: tuple[int, ...] = field(repr=False)
    truncated: bool
    """The text was longer than `limit`."""


class MarkedText:
    """Tokenises as `tokenizer(text, truncation=True, max_length=limit)` does; thread-safe.

    Unlike there, names of special tokens in a text are ordinary characters.

    Args:
        tokenizer: one of transformers'.
        limit: most tokens of one text, marks included.

    Raises:
        FailedPrecondition: the limit leaves no room beside the marks.
    """

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self._plain = PlainText(tokenizer)
        self._first, self._last = _marks(tokenizer)
        self._room = limit - len(self._first) - len(self._last)
        if self._room < 1:
            raise FailedPrecondition(f"{limit} tokens of text are too few for this model")
        unknown = tokenizer.unk_token_id
        self._unknown = unknown if unknown in self._plain.ids(_NOWHERE) else None
        self._names = tuple(tokenizer.model_input_names)
        self._padding = tokenizer.pad_token_id or 0
        self._pads_left = tokenizer.padding_side == "left"

    def tokens(self, text: str) -> Tokens:
        """Return the ids of `text`, the end cut off where there are too many."""
        ids = self._plain.ids(text)
        kept = (*self._first, *ids[: self._room], *self._last)
        return Tokens(kept, truncated=len(ids) > self._room)

    def knows_no_word(self, text: str) -> bool:
        """Tell whether a text has tokens of unknown words only; False where none is unknown."""
        return self._unknown is not None and {self._unknown}.issuperset(self._plain.ids(text))

    def check_instruction(self, text: str) -> None:
        """Raise `InputTooLong` when an instruction takes more than half of what is read."""
        check_instruction_length(len(self._plain.ids(text)), self._room)

    def prefix_length(self, text: str) -> int:
        """Return how many tokens `text` takes at the start of another text, with the first mark."""
        return len(self._first) + len(self._plain.ids(text))

    def padded(self, batch: Sequence[Tokens], width: int = 0) -> dict[str, torch.Tensor]:
        """Return what the network takes (n, width), by name; as wide as the longest, or more."""
        width = max(width, *(len(tokens.ids) for tokens in batch))
        ids = torch.full((len(batch), width), self._padding)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(batch):
            start = width - len(tokens.ids) if self._pads_left else 0
            place = slice(start, start + len(tokens.ids))
            ids[row, place] = torch.tensor(tokens.ids)
            mask[row, place] = 1
        made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        return {name: made[name] for name in self._names if name in made}


def _marks(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what the tokenizer puts before and after any text, such as `[CLS]` and `[SEP]`."""
    marked = tokenizer("x")["input_ids"]
    bare = tokenizer("x", add_special_tokens=False)["input_ids"]
    for start in range(len(marked) - len(bare) + 1):
        end = start + len(bare)
        if marked[start:end] == bare:
            return tuple(marked[:start]), tuple(marked[end:])
    raise FailedPrecondition("this tokenizer does not put its marks around the text")
