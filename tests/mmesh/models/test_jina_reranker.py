"""jina-reranker-m0 on the real vLLM engine, against the published method written out.

The reference is the code of the model card with transformers' Qwen2-VL: one string, one more token
with id 100, and a head of two layers above it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import pytest

from mmesh.content import Content
from mmesh.models.judges import jina_reranker
from mmesh.models.judges.choice import JudgeChoice
from mmesh.models.judges.families import family_name, load_family, open_judge
from mmesh.models.probes import picture
from mmesh.testing.tiny_models import build_tiny_jina_reranker

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is absent: run `make setup-vllm`"
    ),
]

TOLERANCE = 1e-4
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
SIZE = {"shortest_edge": 3136, "longest_edge": 602112}

RED, BLUE, LARGE = picture(0, (90, 60)), picture(1, (64, 120)), picture(2, (1200, 900))
QUERY = Content.of(RED, "the same, but (blue)")
PAIRS = {
    "text/text": (Content.of("red square"), Content.of("a house and a tree")),
    "text/image": (Content.of("red square"), Content.of(BLUE)),
    "image/text": (Content.of(RED), Content.of("photo of a cat")),
    "image/image": (Content.of(RED), Content.of(BLUE)),
    "image+text/image+text": (QUERY, Content.of(BLUE, "blue circle")),
    "large picture": (Content.of("red square"), Content.of(LARGE)),
    "two pictures": (Content.of(RED, BLUE), Content.of(BLUE, RED, "both of them")),
    "punctuation at the seams": (Content.of("(red)..."), Content.of("**yes** \n\n ")),
}


def words(content: Content) -> str:
    """Return a side of the prompt."""
    return "".join(part if isinstance(part, str) else PICTURE for part in content.parts)


def prompt(query: Content, document: Content) -> str:
    """Return the whole prompt as the authors write it, without its last token."""
    return f"**Document**:\n{words(document)}\n**Query**:\n{words(query)}"


class Reference:
    """The authors' way to score a pair."""

    def __init__(self, folder: Path) -> None:
        import torch
        import transformers
        from safetensors.torch import load_file

        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        self.body = transformers.Qwen2VLModel.from_pretrained(folder, dtype="float32").eval()
        weights = load_file(folder / "model.safetensors")
        layers = [torch.nn.Linear(128, 128), torch.nn.ReLU(), torch.nn.Linear(128, 1)]
        self.head = torch.nn.Sequential(*layers)
        head = {name: value for name, value in weights.items() if name.startswith("score.")}
        self.head.load_state_dict(
            {name.removeprefix("score."): value for name, value in head.items()}
        )

    def score(self, query: Content, document: Content) -> float:
        """Return sigmoid(head - 2.65) at the token 100 after the prompt."""
        import torch

        pictures = [PIL.Image.open(io.BytesIO(i.data)) for i in (*document.images, *query.images)]
        inputs = self.processor(
            text=[prompt(query, document)],
            images=pictures or None,
            size=SIZE,
            return_tensors="pt",
        )
        for name, last in (("input_ids", 100), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            if name in inputs:
                inputs[name] = torch.cat([inputs[name], torch.tensor([[last]])], dim=1)
        with torch.inference_mode():
            hidden = self.body(**inputs).last_hidden_state[0, -1]
            return float(torch.sigmoid(self.head(hidden) - 2.65))


@dataclass(frozen=True)
class Scored:
    """What the tests compare."""

    alone: dict[str, float]
    together: list[float]
    shuffled: list[float]
    long: list[float]


CANDIDATES = [document for name, (_, document) in PAIRS.items() if name != "large picture"]
ORDER = random.Random(0).sample(range(len(CANDIDATES)), len(CANDIDATES))
LONG = " ".join(f"word{n}" for n in range(2000))


async def scored_by_vllm(folder: Path) -> Scored:
    """Score everything."""
    judge = await open_judge(
        JudgeChoice(
            f"vllm:{folder}",
            dtype="float32",
            max_model_len=2048,
            kv_cache_gib=1 / 16,
            enforce_eager=True,
        )
    )
    try:
        return Scored(
            {
                name: (await judge.score(query, "", [document]))[0]
                for name, (query, document) in PAIRS.items()
            },
            await judge.score(QUERY, "has no place in the prompt", CANDIDATES),
            await judge.score(QUERY, "", [CANDIDATES[n] for n in ORDER]),
            await judge.score(QUERY, "", [Content.of(LONG), Content.of(f"{LONG} and more")]),
        )
    finally:
        await judge.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny model; vLLM runs in two processes, compiles nothing and fetches nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        yield build_tiny_jina_reranker(tmp_path_factory.mktemp("tiny-jina"))


@pytest.fixture(scope="module")
def scored(folder: Path) -> Scored:
    """Scores by vLLM."""
    return asyncio.run(scored_by_vllm(folder))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    """The authors' method on the same files."""
    return Reference(folder)


@pytest.mark.parametrize("name", PAIRS)
def test_a_score_is_the_published_one(scored: Scored, reference: Reference, name: str) -> None:
    assert scored.alone[name] == pytest.approx(reference.score(*PAIRS[name]), abs=TOLERANCE)


def test_a_batch_in_any_order_scores_as_single_pairs_do(
    scored: Scored, reference: Reference
) -> None:
    expected = [reference.score(QUERY, document) for document in CANDIDATES]
    assert scored.together == pytest.approx(expected, abs=TOLERANCE)
    assert scored.shuffled == pytest.approx([expected[n] for n in ORDER], abs=TOLERANCE)
    assert max(expected) - min(expected) > 0.01  # else agreement would mean nothing


def test_a_long_document_is_judged_by_its_beginning(scored: Scored) -> None:
    first, second = scored.long
    assert first == pytest.approx(second, abs=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_token_ids_are_those_of_the_whole_prompt(
    folder: Path, reference: Reference, name: str
) -> None:
    prompts = load_family(folder, JudgeChoice(f"vllm:{folder}")).prompts
    whole = reference.processor.tokenizer(prompt(*PAIRS[name]))["input_ids"]
    query, document = PAIRS[name]
    assert prompts.build(query, "", document) == [*whole, jina_reranker.SCORE_TOKEN_ID]


@pytest.mark.parametrize("size", [(90, 60), (1200, 900), (20, 20)])
def test_tokens_of_a_picture_are_counted(reference: Reference, size: tuple[int, int]) -> None:
    image = PIL.Image.new("RGB", size)
    inputs = reference.processor(text=[PICTURE], images=[image], size=SIZE)
    counted = len(inputs["input_ids"][0]) - 2
    assert jina_reranker.image_tokens(*size) == counted


def test_the_family_is_told_from_the_config(folder: Path) -> None:
    assert family_name(str(folder), folder) == "jina-reranker-m0"
