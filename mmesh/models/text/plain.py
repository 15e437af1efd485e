"""Turns what users write into token ids that none of a model's special tokens can be among.

A tokenizer reads `<|im_end|>` or `<image>` in a text as the token of that name. Whoever could write
such a token could end a prompt early, start another role, or add a picture that is not there.
"""

from __future__ import annotations

from typing import Any

from mmesh.errors import FailedPrecondition


def ids_of(backend: Any, text: str) -> list[int]:
    """Return the ids of `text`, without marks, by a tokenizer of the library `tokenizers`.

    Its call for one text keeps all other threads waiting (the GIL); that for several does not.
    """
    ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids


class PlainText:
    """Tokenises text apart from a model's prompt; safe to use from several threads.

    `tokenizer` is one of transformers'. It is copied, since calls with other options change it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = _literal_backend(tokenizer)
        self._reserved = _reserved_tokens(tokenizer)

    def ids(self, text: str) -> list[int]:
        """Return the ids of `text`; no id is that of a special or added token."""
        ids = self._literal_ids(text)
        if self._reserved.keys().isdisjoint(ids):
            return ids
        return [plain for token in ids for plain in self._spelt(token)]

    def shortened(self, text: str, tokens: int) -> str:
        """Return `text` without its last `tokens`, one or more; no character is cut in parts.

        Raises:
            FailedPrecondition: the tokenizer is not one of transformers' fast ones.
        """
        if self._backend is None:
            raise FailedPrecondition("this model's tokenizer cannot cut texts; convert it")
        [read] = self._backend.encode_batch([text], add_special_tokens=False)  # as `ids_of`
        starts = [start for start, _ in read.offsets]
        return text[: starts[-tokens]] if tokens < len(starts) else ""

    def _literal_ids(self, text: str) -> list[int]:
        """Tokenise with special tokens read as text; added ones, such as `<think>`, remain."""
        if self._backend is not None:
            ids: list[int] = ids_of(self._backend, text)
        else:
            ids = self._tokenizer(
                text, add_special_tokens=False, split_special_tokens=True, verbose=False
            )["input_ids"]
        return ids

    def _spelt(self, token: int) -> list[int]:
        """Write a reserved token as its first character and its rest."""
        text = self._reserved.get(token)
        if text is None:
            return [token]
        if len(text) < 2:
            return []
        return [*self.ids(text[0]), *self.ids(text[1:])]


def _literal_backend(tokenizer: Any) -> Any:
    """Return a copy of the tokenizer's Rust part that never cuts or pads; None if it has none."""
    original = getattr(tokenizer, "backend_tokenizer", None)
    if original is None:
        return None
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(original.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def _reserved_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the special and added tokens, without the one for unknown text."""
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    for number in tokenizer.all_special_ids:
        added.setdefault(number, str(tokenizer.convert_ids_to_tokens(number)))
    added.pop(tokenizer.unk_token_id, None)
    return added
