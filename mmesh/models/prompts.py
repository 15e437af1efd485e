"""Turns a template, a query and a candidate into token ids that nobody's text can forge.

The fixed parts come from the model's own chat template, cut at markers; the parts that users write
are tokenised apart from it, with special tokens read as plain text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmesh.content import Content
from mmesh.errors import FailedPrecondition, InvalidField
from mmesh.models.templates import SLOTS, Template

MIN_CANDIDATE_TOKENS = 16
"""A candidate that is cut to fewer tokens of text than this is refused instead."""

_MARKERS = {slot: f"mmesh7f3a{slot}marker" for slot in SLOTS}
_Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids with one placeholder per picture; only `candidate` may be shortened."""

    head: _Ids
    candidate: tuple[_Ids, ...]
    """Runs of ids; those of text and those of pictures alternate with no rule."""
    is_text: tuple[bool, ...]
    tail: _Ids

    @property
    def ids(self) -> list[int]:
        """The whole prompt."""
        middle = (token for run in self.candidate for token in run)
        return [*self.head, *middle, *self.tail]

    def shortened(self, excess: int, path: str) -> Prompt:
        """Return the prompt without the last `excess` tokens of the candidate's text.

        Raises:
            InvalidField: too little of the text would remain; `path` is the candidate's.
        """
        if excess <= 0:
            return self
        room = sum(len(run) for run, text in self._runs() if text)
        if excess > room - min(room, MIN_CANDIDATE_TOKENS):
            raise InvalidField(path, "does not fit beside the query; shorten either one")
        runs = list(self.candidate)
        for number in reversed(range(len(runs))):
            cut = min(excess, len(runs[number])) if self.is_text[number] else 0
            runs[number] = runs[number][: len(runs[number]) - cut]
            excess -= cut
        return replace(self, candidate=tuple(runs))

    def _runs(self) -> Iterator[tuple[_Ids, bool]]:
        return zip(self.candidate, self.is_text, strict=True)


@dataclass(frozen=True, slots=True)
class _Frame:
    """The fixed text: before the instruction, the query, the candidate, and the end."""

    texts: tuple[str, ...]
    image: str
    """What the chat template writes for one picture; empty if it cannot."""


class PromptBuilder:
    """Builds prompts for one model and one template; safe to use from several threads.

    Raises:
        FailedPrecondition: the model's chat template or tokenizer does not suit the template.
    """

    def __init__(self, processor: Any, template: Template, image_token_id: int | None) -> None:
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._template = template
        self._image_token_id = image_token_id
        frame = _frame(processor, template, with_image=image_token_id is not None)
        lead, *rest = (self._fixed(text) for text in frame.texts)
        self._frame = (self._opened(lead), *rest)
        self._image = self._fixed(frame.image)
        if image_token_id is not None and self._image.count(image_token_id) != 1:
            raise FailedPrecondition("the chat template does not write one token for a picture")
        self.answer_ids = (
            self._answer_id(template.answer_true),
            self._answer_id(template.answer_false),
        )
        self._reserved = self._reserved_tokens()

    @property
    def reads_images(self) -> bool:
        """Whether the model takes pictures."""
        return self._image_token_id is not None

    def build(self, query: Content, instruction: str, candidate: Content) -> Prompt:
        """Return the prompt for one pair; pictures are those of the query, then the candidate's.

        Raises:
            InvalidField: the placeholders would not match the pictures (`query` or `candidate`).
        """
        before, after_instruction, after_query, tail = self._frame
        task = self.plain_ids(instruction.strip() or self._template.instruction)
        asked = [token for run, _ in self._content(query) for token in run]
        runs = list(self._content(candidate))
        prompt = Prompt(
            head=(*before, *task, *after_instruction, *asked, *after_query),
            candidate=tuple(run for run, _ in runs),
            is_text=tuple(text for _, text in runs),
            tail=tail,
        )
        self._check_placeholders(prompt, len(query.images) + len(candidate.images))
        return prompt

    def plain_ids(self, text: str) -> list[int]:
        """Tokenise text that somebody wrote; no id is that of a special or added token."""
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        if self._reserved.keys().isdisjoint(ids):
            return ids
        return [plain for token in ids for plain in self._spelt(token)]

    def _spelt(self, token: int) -> list[int]:
        """Write an added token, such as `<think>`, as its first character and its rest."""
        text = self._reserved.get(token)
        if text is None:
            return [token]
        if len(text) < 2:
            return []
        return [*self.plain_ids(text[0]), *self.plain_ids(text[1:])]

    def _content(self, content: Content) -> Iterator[tuple[_Ids, bool]]:
        after_text = False
        for part in content.parts:
            if not isinstance(part, str):
                yield self._image, False
            else:
                yield tuple(self.plain_ids(f"\n{part}" if after_text else part)), True
            after_text = isinstance(part, str)

    def _fixed(self, text: str) -> _Ids:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _opened(self, lead: _Ids) -> _Ids:
        """Return `lead` after the tokens that the tokenizer puts before any text, such as BOS."""
        marked = self._tokenizer("x")["input_ids"]
        bare = self._tokenizer("x", add_special_tokens=False)["input_ids"]
        opening = tuple(marked[: marked.index(bare[0])])
        return lead if lead[: len(opening)] == opening else opening + lead

    def _answer_id(self, answer: str) -> int:
        ids = self._fixed(answer)
        if len(ids) != 1 or ids[0] == self._tokenizer.unk_token_id:
            raise FailedPrecondition(
                f"the answer {answer!r} is {len(ids)} tokens or unknown to this model; "
                "it must be one: choose another template"
            )
        return ids[0]

    def _reserved_tokens(self) -> dict[int, str]:
        added = {i: str(token) for i, token in self._tokenizer.added_tokens_decoder.items()}
        for token in self._tokenizer.all_special_ids:
            added.setdefault(token, str(self._tokenizer.convert_ids_to_tokens(token)))
        added.pop(self._tokenizer.unk_token_id, None)
        return added

    def _check_placeholders(self, prompt: Prompt, pictures: int) -> None:
        if self._image_token_id is None and pictures:
            raise InvalidField("candidate or query", "holds a picture; this model reads text only")
        placeholders = prompt.ids.count(self._image_token_id) if self._image_token_id else 0
        if placeholders != pictures:
            raise InvalidField(
                "candidate or query", f"has {pictures} pictures but {placeholders} placeholders"
            )


def load_prompt_builder(model_dir: Path, template: Template) -> PromptBuilder:
    """Open the tokenizer and chat template in `model_dir`; nothing is fetched and no code is run.

    Raises:
        FailedPrecondition: the model does not suit the template.
    """
    from transformers import AutoConfig, AutoProcessor

    config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
    processor = AutoProcessor.from_pretrained(model_dir, local_files_only=True)
    ids = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return PromptBuilder(processor, template, next((i for i in ids if i is not None), None))


def _frame(processor: Any, template: Template, *, with_image: bool) -> _Frame:
    """Render the chat template around markers and cut it there.

    Templates differ in what they accept: content as text or as a list of parts, and a system
    message or none. The first form that keeps everything is taken.
    """
    user = template.filled(_MARKERS)
    plain = [
        [_message("system", template.system), _message("user", user)],
        [_message("user", f"{template.system}\n\n{user}")],
    ]
    listed = [[_in_parts(message) for message in messages] for messages in plain]
    for messages in (plain[0], listed[0], plain[1], listed[1]):
        rendered = _render(processor, messages)
        if template.system in rendered and _holds_markers(rendered):
            image = _image_text(processor, messages, rendered) if with_image else ""
            return _Frame(_cut(rendered), image)
    raise FailedPrecondition("the model's chat template does not keep the text that it is given")


def _message(role: str, content: str | list[dict[str, str]]) -> dict[str, Any]:
    return {"role": role, "content": content}


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    return _message(message["role"], [{"type": "text", "text": message["content"]}])


def _render(processor: Any, messages: Sequence[dict[str, Any]]) -> str:
    """Return the rendered chat, or nothing where the template cannot take this form."""
    import jinja2

    try:
        return str(
            processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    except (jinja2.TemplateError, TypeError, KeyError, IndexError):
        return ""
    except ValueError as error:
        raise FailedPrecondition("the model has no chat template; use an instruct model") from error


def _holds_markers(rendered: str) -> bool:
    places = [rendered.find(marker) for marker in _MARKERS.values()]
    once = all(rendered.count(marker) == 1 for marker in _MARKERS.values())
    as_list = "'type'" in rendered  # the template printed the Python list
    return once and places == sorted(places) and not as_list


def _cut(rendered: str) -> tuple[str, ...]:
    pieces = []
    for marker in _MARKERS.values():
        before, _, rendered = rendered.partition(marker)
        pieces.append(before)
    return (*pieces, rendered)


def _image_text(processor: Any, messages: list[dict[str, Any]], rendered: str) -> str:
    """Return what one picture adds to the rendered chat, wherever the template puts it."""
    *before, user = messages
    parts = user["content"]
    texts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
    pictured = _render(processor, [*before, _message("user", [{"type": "image"}, *texts])])
    start = next((i for i, (a, b) in enumerate(zip(pictured, rendered, strict=False)) if a != b), 0)
    return pictured[start : start + len(pictured) - len(rendered)]
