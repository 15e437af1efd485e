r"""Makes what a sentence-transformers model reads of one content.

Texts never reach the library as bare strings, which it would open where they name a picture's file
or address, and cannot become special tokens. Prompts are the model's own: `query` for queries,
`document`, `passage` or `corpus` for candidates. An instruction is followed only where one of the
prompts has the form `Instruct: ...\nQuery: `, and then takes the place of the dots.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image as Pillow

from mmesh.content import Content, Modality, Role
from mmesh.errors import FailedPrecondition, InvalidField
from mmesh.models import images
from mmesh.models.encoders.centre_crop import middle_of
from mmesh.models.text.marked import MarkedText

FALLBACK_TOKENS = 512
"""What a model reads that does not say how much."""

Features = dict[str, Any]
"""What the first module takes: tensors (1, ...) by name, and settings such as `modality`."""
_CANDIDATE_PROMPTS = ("document", "passage", "corpus")
_TASKS = {Role.QUERY: "query", Role.CANDIDATE: "document"}


@dataclass(frozen=True, slots=True)
class Prompts:
    """What stands before the texts of a role."""

    query: str
    candidate: str
    instructed: tuple[str, str] | None
    """What stands before and after an instruction; None if the model follows none."""

    @classmethod
    def of(cls, network: Any) -> Prompts:
        """Choose among a `SentenceTransformer`'s as `encode_query` and `encode_document` do."""
        prompts: dict[str, str] = network.prompts
        default = prompts.get(network.default_prompt_name, "")
        candidate = next((prompts[name] for name in _CANDIDATE_PROMPTS if name in prompts), default)
        return cls(prompts.get("query", default), candidate, _frame(prompts.values()))

    def of_role(self, role: Role, instruction: str) -> str:
        """Return the prompt for content of a role; instructions are for queries only."""
        if role is Role.CANDIDATE:
            return self.candidate
        if not instruction or self.instructed is None:
            return self.query
        before, after = self.instructed
        return f"{before}{instruction}{after}"


def _frame(prompts: Iterable[str]) -> tuple[str, str] | None:
    for prompt in prompts:
        found = re.fullmatch(r"(.*Instruct: ?).*?(\n ?Query: ?)", prompt, re.DOTALL)
        if found:
            return found[1], found[2]
    return None


class Inputs:
    """Makes features; thread-safe.

    Args:
        network: a `SentenceTransformer`.
        max_text_tokens: most tokens of a text; 0 for what the model reads.

    Raises:
        FailedPrecondition: the model's first module is of another kind.
    """

    def __init__(self, network: Any, max_text_tokens: int) -> None:
        self._first = _transformer(network)
        self._first.unpad_inputs = False
        self.prompts = Prompts.of(network)
        longest = _longest(self._first)
        self.max_text_tokens = min(max_text_tokens or longest, longest)
        self._first.max_seq_length = self.max_text_tokens
        tokenizer = self._first.tokenizer
        self.padding: int = getattr(tokenizer, "pad_token_id", None) or 0
        self._special = _pattern_of_special_tokens(tokenizer)
        self._texts = self._readers() if self._reads_texts_itself() else {}
        self._instructions = self._reader_of_instructions()
        self._pools_prompt = all(getattr(module, "include_prompt", True) for module in network)
        # A processor that cuts or pads changes its tokenizer, so only one call may run.
        self._lock = threading.Lock()

    def knows_no_word(self, content: Content, role: Role) -> bool:
        """Tell whether content has a text of words that are all unknown to the model."""
        reader = self._texts.get(role)
        return bool(content.texts) and reader is not None and reader.knows_no_word(content.text)

    def of(self, content: Content, role: Role, instruction: str) -> tuple[Features, bool]:
        """Return the features of `content`, and whether its text was cut.

        Where the library's processor cuts, a text that just fits counts as cut too.

        Raises:
            InvalidField: a picture cannot be decoded, or the processor refuses the content.
            InputTooLong: the instruction takes more than half of what the model reads.
        """
        if role is Role.QUERY and instruction and self._instructions:
            self._instructions.check_instruction(self.prompts.of_role(role, instruction))
        if content.modality is Modality.TEXT and self._texts:
            return self._text(content.text, role, self.prompts.of_role(role, instruction))
        prompt = self.prompts.of_role(role, self._literal(instruction))
        features = self._processed(self._as_library_input(content), role, prompt)
        ids = features.get("input_ids")
        return features, ids is not None and ids.shape[1] >= self.max_text_tokens

    def _reads_texts_itself(self) -> bool:
        """Tell whether texts are plain tokens after a plain prompt, without a chat around them."""
        first, prompts = self._first, (self.prompts.query, self.prompts.candidate)
        is_special = any(self._special.search(prompt) for prompt in prompts)
        adjusted = first.processing_kwargs or first.query_expansion
        return not ("message" in first.modalities or adjusted or is_special or not first.tokenizer)

    def _readers(self) -> dict[Role, MarkedText]:
        lengths = {
            Role.QUERY: self._first.query_length,
            Role.CANDIDATE: self._first.document_length,
        }
        readers = {}
        for role, length in lengths.items():
            limit = min(length or self.max_text_tokens, self.max_text_tokens)
            readers[role] = MarkedText(self._first.tokenizer, limit)
            if readers[role].prefix_length(self.prompts.of_role(role, "")) >= limit - 1:
                raise FailedPrecondition(f"{limit} tokens are too few for this model's prompts")
        return readers

    def _reader_of_instructions(self) -> MarkedText | None:
        """Return what knows how long instructions are; None where none is followed."""
        tokenizer = self._first.tokenizer
        if self.prompts.instructed is None or not tokenizer:
            return None
        return self._texts.get(Role.QUERY) or MarkedText(tokenizer, self.max_text_tokens)

    def _text(self, text: str, role: Role, prompt: str) -> tuple[Features, bool]:
        reader = self._texts[role]
        tokens = reader.tokens(prompt + text)
        features: Features = {"modality": "text", **reader.padded([tokens])}
        if prompt and not self._pools_prompt:
            features["prompt_length"] = reader.prefix_length(prompt)
        return features, tokens.truncated

    def _processed(self, content: Any, role: Role, prompt: str) -> Features:
        with self._lock:
            try:
                return dict(
                    self._first.preprocess([content], prompt=prompt or None, task=_TASKS[role])
                )
            except ValueError as error:
                raise InvalidField("content", f"is refused by the model: {error}") from error

    def _as_library_input(self, content: Content) -> Any:
        """Return the content as a dict, or as a chat where pictures and texts may alternate."""
        if not content.images:
            return {"text": self._literal(content.text)}
        parts = self._parts(content)
        if "message" in self._first.modalities:
            return [{"role": "user", "content": parts}]
        if len(content.images) > 1:
            raise InvalidField("content", "holds several pictures; this model reads one")
        return {part["type"]: part[part["type"]] for part in parts}

    def _parts(self, content: Content) -> list[dict[str, Any]]:
        """Return the parts in order, neighbouring texts as one."""
        parts: list[dict[str, Any]] = []
        for number, part in enumerate(content.parts):
            if not isinstance(part, str):
                picture = self._picture(part.data, f"content.parts[{number}].image.data")
                parts.append({"type": "image", "image": picture})
            elif parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += f"\n{self._literal(part)}"
            else:
                parts.append({"type": "text", "text": self._literal(part)})
        return parts

    def _picture(self, data: bytes, path: str) -> Pillow.Image:
        processor = getattr(self._first.processor, "image_processor", self._first.processor)
        return middle_of(images.decode(data, path), processor, path)

    def _literal(self, text: str) -> str:
        """Return the text with a space in each name of a special token, which makes it words."""
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def is_sequence(name: str, features: Features) -> bool:
    """Tell whether a feature has a value, or a row of them, for each token."""
    value, ids = features[name], features.get("input_ids")
    return ids is not None and isinstance(value, torch.Tensor) and value.shape[:2] == ids.shape[:2]


def _transformer(network: Any) -> Any:
    from sentence_transformers.base.modules import Transformer

    first = network[0]
    if not isinstance(first, Transformer) or first.transformer_task != "feature-extraction":
        raise FailedPrecondition(
            f"the model begins with {type(first).__name__}; supported are those that begin with "
            "a Transformer for feature extraction"
        )
    return first


def _longest(first: Any) -> int:
    """Return how many tokens the model reads; tokenizers may say 10^30 for not knowing."""
    text = first.config.get_text_config()
    stated = (first.max_seq_length, getattr(text, "max_position_embeddings", None))
    return min((int(n) for n in stated if n and n < 1 << 30), default=FALLBACK_TOKENS)


def _pattern_of_special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Return what finds the names of special and added tokens; nothing without a tokenizer."""
    added = tokenizer.added_tokens_decoder.values() if tokenizer else ()
    names = sorted((str(token) for token in added), key=len, reverse=True)
    pattern = "|".join(re.escape(name) for name in names if len(name) > 1) or r"(?!)"
    return re.compile(pattern, re.IGNORECASE)  # some tokenizers look for them in lower case
