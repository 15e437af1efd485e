"""jina-reranker-m0: a Qwen2-VL with a head of two layers that scores a document for a query.

Follows the published code of jinaai/jina-reranker-m0. Its prompt has no place for an instruction,
so a request's instruction plays no part. The document comes first, so the candidates of a query
share no cached prefix.
"""

from __future__ import annotations

from pathlib import Path

from mmesh.content import Modality
from mmesh.models.judges.prompts import Frame, PromptBuilder, word_id
from mmesh.models.judges.vllm_judge import Classifier, JudgeFamily, limit_pixels

FAMILY = "jina-reranker-m0"
REVISION = 1
ARCHITECTURE = "JinaVLForRanking"

FRAME = Frame.parse(
    "**Document**:\n{candidate}\n**Query**:\n{query}",
    image="<|vision_start|><|image_pad|><|vision_end|>",
)
SCORE_TOKEN_ID = 100
"""Ends every prompt; the head reads the hidden state above it."""
MIN_PIXELS, MAX_PIXELS = 56 * 56, 768 * 28 * 28
_SIDE = 28
"""Pixels of a picture's token, in width and in height."""


def load_jina_reranker(folder: Path) -> JudgeFamily:
    """Open the tokenizer in `folder`; nothing is fetched and no code is run.

    Raises:
        FailedPrecondition: the model is no Qwen2-VL.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    image_token_id = word_id(tokenizer, "<|image_pad|>")
    return JudgeFamily(
        name=FAMILY,
        revision=REVISION,
        prompts=PromptBuilder(tokenizer, FRAME, "", image_token_id, ending=(SCORE_TOKEN_ID,)),
        route=Classifier(),
        template=FRAME.identity(FAMILY, REVISION),
        weights=dict.fromkeys(Modality, 1.0),
        compares_modalities=False,
        image_tokens=image_tokens,
        engine_arguments=limit_pixels(MIN_PIXELS, MAX_PIXELS),
        vllm_reverses_pictures=True,
    )


def image_tokens(width: int, height: int) -> int:
    """Return the tokens of a picture of this size, by transformers' scaling.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    rows, columns = smart_resize(height, width, _SIDE, MIN_PIXELS, MAX_PIXELS)
    return int(rows * columns) // _SIDE**2
