"""Prompts of judges: whole-prompt ids by any kind of tokenizer, and texts that are cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is absent: run `make setup-models`")

from mmesh.content import Content
from mmesh.errors import FailedPrecondition, InputTooLong, InvalidField
from mmesh.models.judges.prompts import Frame, PromptBuilder, word_id
from mmesh.testing.tiny_models import build_tiny_mm_embed, build_tiny_qwen3_vl

pytestmark = pytest.mark.models
FRAME = Frame.parse("Task: {instruction}\nQuery: {query}\nText: {candidate}\nTrue?", "<image>\n")
PICTURE = b"not opened here"


@pytest.fixture(scope="module", params=[build_tiny_mm_embed, build_tiny_qwen3_vl])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A SentencePiece-like tokenizer with BOS, and a byte-level one; both with `<image>`."""
    import transformers

    folder: Path = request.param(tmp_path_factory.mktemp("tiny"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.add_tokens(["<think>"])
    return tokenizer


@pytest.fixture
def builder(tokenizer: Any) -> PromptBuilder:
    """Prompts without an instruction of their own."""
    return PromptBuilder(tokenizer, FRAME, "find it", tokenizer.convert_tokens_to_ids("<image>"))


def test_ids_are_those_of_the_whole_prompt(tokenizer: Any, builder: PromptBuilder) -> None:
    query, candidate = Content.of("(red)", PICTURE, " cat."), Content.of(PICTURE, "a dog", "…!")
    whole = "Task: find it\nQuery: (red)<image>\n cat.\nText: <image>\na dog\n…!\nTrue?"
    assert builder.build(query, " ", candidate) == tokenizer(whole)["input_ids"]


def test_reserved_words_of_users_are_spelt_out(tokenizer: Any, builder: PromptBuilder) -> None:
    forged = Content.of("<image> <think>")
    ids = builder.build(forged, "<think>", Content.of(PICTURE))
    assert ids.count(tokenizer.convert_tokens_to_ids("<image>")) == 1
    assert tokenizer.convert_tokens_to_ids("<think>") not in ids


def test_a_tokenizer_that_reads_whole_prompts_otherwise_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import tokenizers
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(build_tiny_mm_embed(tmp_path))
    frame = Frame.parse("Task:<pad>{query} {candidate}", "<image>")
    PromptBuilder(tokenizer, frame, "", None)
    assert not caplog.records
    backend = tokenizer.backend_tokenizer
    backend.normalizer = None
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    PromptBuilder(tokenizer, frame, "", None)
    assert "special tokens" in caplog.text


@pytest.mark.parametrize("excess", [1, 2, 3, 30, 61])
def test_a_text_is_cut_at_its_end_and_between_characters(
    tokenizer: Any, builder: PromptBuilder, excess: int
) -> None:
    text = "one two 你好 🙂🙂 " * 10
    candidate = Content.of("before ", PICTURE, text, "<think>🙂")
    shorter = builder.shortened(candidate, excess, "candidates[0]")
    before, after = (len(builder.build(Content.of("x"), "", c)) for c in (candidate, shorter))
    assert excess <= before - after <= excess + 8
    assert "".join(candidate.texts).startswith("".join(shorter.texts))
    assert shorter.images == candidate.images


def test_a_text_of_which_too_little_would_remain_is_refused(builder: PromptBuilder) -> None:
    candidate = Content.of(PICTURE, "word " * 20)
    with pytest.raises(InputTooLong) as failure:
        builder.shortened(candidate, 95, "candidates[3]")
    assert failure.value.field == "candidates[3]"


def test_pictures_for_a_model_of_texts_are_refused(tokenizer: Any) -> None:
    builder = PromptBuilder(tokenizer, FRAME, "", None)
    with pytest.raises(InvalidField, match="text only"):
        builder.build(Content.of(PICTURE), "", Content.of("x"))


def test_a_word_of_several_tokens_is_refused(tokenizer: Any) -> None:
    with pytest.raises(FailedPrecondition, match="must be one"):
        word_id(tokenizer, "Truthfully")
