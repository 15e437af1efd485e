"""Any instruct MLLM as a judge, asked for True or False without training for it.

The method is that of MM-Embed (arXiv 2411.02571, section on zero-shot reranking with multimodal
LLMs): one forward pass per pair, and the score is the probability of the word True against the word
False as the first word of the answer. Nothing is generated beyond that word. The question is that
of a template, put into the model's own chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmesh.content import Content
from mmesh.errors import FailedPrecondition
from mmesh.models.judges.prompts import Frame, PromptBuilder, word_id
from mmesh.models.judges.templates import SLOTS, TaskFamily, Template, TemplateSet
from mmesh.models.judges.vllm_judge import JudgeFamily, Logprob
from mmesh.models.text.plain import PlainText

FAMILY = "zero-shot"
REVISION = 2

UNKNOWN_IMAGE_TOKENS = 576
"""Tokens of a picture where the processor does not tell: a ViT-L/14 at 336 pixels."""
_MARKERS = {slot: f"mmesh7f3a{slot}marker" for slot in SLOTS}


class TaskPrompts:
    """Implements `PairPrompts`: each pair is asked about as its modalities call for."""

    def __init__(self, base: PromptBuilder, by_task: Mapping[TaskFamily, PromptBuilder]) -> None:
        self._base, self._by_task = base, by_task

    @property
    def reads_images(self) -> bool:
        """Whether the model takes pictures."""
        return self._base.reads_images

    @property
    def candidate_first(self) -> bool:
        """False: templates have the query first."""
        return self._base.candidate_first

    def build(self, query: Content, instruction: str, candidate: Content) -> list[int]:
        """Return the ids of the prompt; see `PairPrompts`."""
        task = query.modality, candidate.modality
        return self._by_task.get(task, self._base).build(query, instruction, candidate)

    def shortened(self, candidate: Content, excess: int, path: str) -> Content:
        """Return `candidate` with less text; see `PairPrompts`."""
        return self._base.shortened(candidate, excess, path)


def load_zero_shot(folder: Path, templates: TemplateSet) -> JudgeFamily:
    """Open the tokenizer and chat template in `folder`; nothing is fetched and no code is run.

    Raises:
        FailedPrecondition: the model does not suit the templates.
    """
    from transformers import AutoConfig, AutoProcessor

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    ids = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    image_token_id = next((i for i in ids if i is not None), None)
    base, tokenizer = templates.base, _tokenizer_of(processor)
    return JudgeFamily(
        name=FAMILY,
        revision=REVISION,
        prompts=_task_prompts(processor, templates, image_token_id),
        route=Logprob(word_id(tokenizer, base.answer_true), word_id(tokenizer, base.answer_false)),
        template=templates.identity,
        weights=base.weights,
        compares_modalities=base.compares_modalities,
        image_tokens=lambda width, height: _image_tokens(processor, width, height),
    )


def _task_prompts(
    processor: Any, templates: TemplateSet, image_token_id: int | None
) -> TaskPrompts:
    """Return the prompts of all task families for the model of `processor`.

    Raises:
        FailedPrecondition: the model has no chat template, or one that does not keep the text.
    """
    tokenizer = _tokenizer_of(processor)
    plain = PlainText(tokenizer)

    def builder(template: Template) -> PromptBuilder:
        frame = _frame(processor, template, with_image=image_token_id is not None)
        words = template.instruction
        return PromptBuilder(tokenizer, frame, words, image_token_id, plain=plain)

    by_task = {task: builder(template) for task, template in templates.by_task.items()}
    return TaskPrompts(builder(templates.base), by_task)


def _tokenizer_of(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def _image_tokens(processor: Any, width: int, height: int) -> int:
    """Return what the model's own resizing makes of a picture, in tokens."""
    count = getattr(processor, "_get_num_multimodal_tokens", None)
    if count is None:
        return UNKNOWN_IMAGE_TOKENS
    return int(count(image_sizes=[(height, width)])["num_image_tokens"][0])


def _frame(processor: Any, template: Template, *, with_image: bool) -> Frame:
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
            return Frame(_cut(rendered), SLOTS, image)
    raise FailedPrecondition("the model's chat template does not keep the text that it is given")


def _message(role: str, content: str | list[dict[str, str]]) -> dict[str, Any]:
    return {"role": role, "content": content}


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    return _message(message["role"], [{"type": "text", "text": message["content"]}])


def _some_day(form: str) -> str:
    """Stand in for the clock of chat templates: scores are not to differ from day to day."""
    return datetime(2026, 1, 1, tzinfo=UTC).strftime(form)


def _render(processor: Any, messages: Sequence[dict[str, Any]]) -> str:
    """Return the rendered chat, or nothing where the template cannot take this form."""
    import jinja2

    try:
        return str(
            processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, strftime_now=_some_day
            )
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
