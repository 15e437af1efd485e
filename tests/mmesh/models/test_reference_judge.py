"""The reference that engines are checked against, against transformers on whole strings."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from mmesh.content import Content
from mmesh.errors import FailedPrecondition, InvalidField
from mmesh.models.judges import qwen3_vl_reranker
from mmesh.models.judges.templates import load_template_set
from mmesh.models.probes import picture
from mmesh.testing import tiny_models

pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None,
        reason="transformers is absent: run `make setup-models`",
    ),
]

RED, BLUE = picture(0, (90, 60)), picture(1, (64, 120))
PAIRS = {
    "texts": (Content.of("red square"), Content.of("a house and a tree")),
    "pictures": (Content.of(RED), Content.of(BLUE)),
    "both": (Content.of(RED, "but blue"), Content.of(BLUE, "blue circle")),
}
QWEN_PICTURE, LLAVA_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>", "<image>\n"


def words(content: Content, image: str) -> str:
    return "".join(part if isinstance(part, str) else image for part in content.parts)


def zero_shot(query: Content, candidate: Content) -> dict[str, str]:
    template = load_template_set("mbeir.v1").choose(query.modality, candidate.modality)
    slots = {
        "instruction": template.instruction,
        "query": words(query, QWEN_PICTURE),
        "candidate": words(candidate, QWEN_PICTURE),
    }
    return {"system": template.system, "user": template.filled(slots)}


def qwen_prompt(query: Content, candidate: Content) -> str:
    return (
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
        "<|im_start|>assistant\n"
    ).format(**zero_shot(query, candidate))


def llava_prompt(query: Content, candidate: Content) -> str:
    asked = zero_shot(query, candidate)
    asked["user"] = asked["user"].replace(QWEN_PICTURE, LLAVA_PICTURE)
    return "<<SYS>>\n{system}\n<</SYS>>\n\n[INST] {user} [/INST]".format(**asked)


def reranker_prompt(query: Content, candidate: Content) -> str:
    return (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        f"<|im_start|>user\n<Instruct>: {qwen3_vl_reranker.INSTRUCTION}"
        f"<Query>:{words(query, QWEN_PICTURE)}\n<Document>:{words(candidate, QWEN_PICTURE)}"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


FAMILIES = {
    "qwen3-vl": (tiny_models.build_tiny_qwen3_vl, qwen_prompt, ("True", "False")),
    "llava-next": (tiny_models.build_tiny_llava_next, llava_prompt, ("True", "False")),
    "reranker": (tiny_models.build_tiny_qwen3_vl_reranker, reranker_prompt, ("yes", "no")),
}


def expected(
    folder: Path, prompt: str, pictures: list[PIL.Image.Image], answers: tuple[str, str]
) -> float:
    """Return the probability of the first answer, from one string."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = processor(text=[prompt], images=pictures or None, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1].double()
    ids = processor.tokenizer.convert_tokens_to_ids(list(answers))
    return float(torch.softmax(logits[ids], 0)[0])


def scaled(family: str) -> Callable[[PIL.Image.Image], PIL.Image.Image]:
    return qwen3_vl_reranker.resized if family == "reranker" else lambda picture: picture


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_score_is_the_probability_of_the_first_word(family, tmp_path):
    from mmesh.models.judges.reference_judge import open_reference_judge

    build, prompt, answers = FAMILIES[family]
    folder = build(tmp_path / family)
    judge = open_reference_judge(str(folder))
    for query, candidate in PAIRS.values():
        pictures = [
            scaled(family)(PIL.Image.open(io.BytesIO(image.data)).convert("RGB"))
            for image in (*query.images, *candidate.images)
        ]
        (score,) = await judge.score(query, "", [candidate])
        assert score == pytest.approx(
            expected(folder, prompt(query, candidate), pictures, answers), abs=1e-5
        )


def test_a_model_with_a_head_of_its_own_has_no_reference(tmp_path):
    from mmesh.models.judges.reference_judge import open_reference_judge

    with pytest.raises((FailedPrecondition, InvalidField)):
        open_reference_judge(str(tiny_models.build_tiny_jina_reranker(tmp_path / "jina")))
