"""Qwen3-VL-Reranker: a Qwen3-VL that was trained to answer whether a document fits a query.

Follows the published code of Qwen/Qwen3-VL-Reranker-2B and -8B (arXiv 2601.04720): its prompt, its
scaling of pictures, and the probability of `yes` against `no` as the score. Its authors score one
pair at a time and put the word NULL in the place of what cannot be loaded; here that is refused.
"""

from __future__ import annotations

import math
from pathlib import Path

import PIL.Image

from mmesh.content import Modality
from mmesh.errors import InvalidField
from mmesh.models.judges.prompts import Frame, PromptBuilder, word_id
from mmesh.models.judges.vllm_judge import Classifier, JudgeFamily, Logprob, Route, limit_pixels

FAMILY = "qwen3-vl-reranker"
REVISION = 1

INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."
FRAME = Frame.parse(
    "<|im_start|>system\n"
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
    "<Instruct>: {instruction}<Query>:{query}\n"
    "<Document>:{candidate}<|im_end|>\n"
    "<|im_start|>assistant\n",
    image="<|vision_start|><|image_pad|><|vision_end|>",
    pictures_first=True,
    between_texts="",
)
MIN_PIXELS, MAX_PIXELS = 64 * 64, 1800 * 32 * 32
MAX_ASPECT_RATIO = 200
_SIDE = 32
"""Pixels of a picture's token, in width and in height."""

ROUTES = ("classifier", "logprob")
_CLASSIFIER = Classifier(
    {
        "architectures": ["Qwen3VLForSequenceClassification"],
        "classifier_from_token": ["no", "yes"],
        "is_original_qwen3_reranker": True,
    }
)


def load_qwen3_vl_reranker(folder: Path, route: str = "auto") -> JudgeFamily:
    """Open the tokenizer in `folder`; nothing is fetched and no code is run.

    `route` is one of `ROUTES`, or `auto` for the first. Both give the same numbers in float32. In
    bfloat16 the classifier is closer to them: it takes the difference of the two words' weights in
    float32, where the other rounds each word's logit.

    Raises:
        InvalidField: there is no such route.
        FailedPrecondition: the model is no Qwen3-VL.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    image_token_id = word_id(tokenizer, "<|image_pad|>")
    return JudgeFamily(
        name=FAMILY,
        revision=REVISION,
        prompts=PromptBuilder(tokenizer, FRAME, INSTRUCTION, image_token_id),
        route=_route(tokenizer, route),
        template=FRAME.identity(FAMILY, REVISION),
        weights=dict.fromkeys(Modality, 1.0),
        compares_modalities=False,
        image_tokens=image_tokens,
        resized=resized,
        engine_arguments=limit_pixels(MIN_PIXELS, MAX_PIXELS),
    )


def scaled_size(width: int, height: int) -> tuple[int, int]:
    """Return the size to which the published code scales a picture, in whole tokens.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"one side is more than {MAX_ASPECT_RATIO} times the other")
    sides = [max(_SIDE, round(side / _SIDE) * _SIDE) for side in (width, height)]
    if math.prod(sides) > MAX_PIXELS:
        shrink = math.sqrt(width * height / MAX_PIXELS)
        sides = [math.floor(side / shrink / _SIDE) * _SIDE for side in (width, height)]
    elif math.prod(sides) < MIN_PIXELS:
        grow = math.sqrt(MIN_PIXELS / (width * height))
        sides = [math.ceil(side * grow / _SIDE) * _SIDE for side in (width, height)]
    return sides[0], sides[1]


def resized(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Scale a picture as the published code does, so that vLLM's processor leaves it as it is.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    return picture.resize(scaled_size(*picture.size), PIL.Image.Resampling.BICUBIC)


def image_tokens(width: int, height: int) -> int:
    """Return the tokens of a picture of this size.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    return math.prod(scaled_size(width, height)) // _SIDE**2


def _route(tokenizer: object, name: str) -> Route:
    if name in ("auto", "classifier"):
        return _CLASSIFIER
    if name == "logprob":
        return Logprob(word_id(tokenizer, "yes"), word_id(tokenizer, "no"))
    raise InvalidField("route", f"{name!r} is unknown; known: auto, {', '.join(ROUTES)}")
