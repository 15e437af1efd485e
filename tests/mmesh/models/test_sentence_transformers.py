"""Sentence-transformers models beside the library's own `encode_query` and `encode_document`."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmesh.content import Content, Modality, Role
from mmesh.errors import FailedPrecondition, InputTooLong, InvalidField, InvalidImage
from mmesh.models import images, probes
from mmesh.models.encoders.families import EncoderChoice, open_encoder
from mmesh.models.protocol import EncoderModel, FloatMatrix, Prepared, encode_together
from mmesh.testing.tiny_models import (
    build_tiny_clip,
    build_tiny_qwen3_vl,
    build_tiny_sentence_transformer,
)
from tests.picture_bombs import encoded

pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif(
        importlib.util.find_spec("sentence_transformers") is None,
        reason="sentence-transformers is absent: run `make setup-models`",
    ),
]
ROOT = Path(__file__).parents[3]
INSTRUCT = "Instruct: Given a question, retrieve passages that answer it\nQuery: "
PROMPTS = {
    "plain": {},
    "prompted": {"query": "query: ", "document": "passage: "},
    "instructed": {"query": INSTRUCT},
}


class Library:
    """The reference: a content as the library's documentation says to pass it."""

    def __init__(self, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer

        self.network = SentenceTransformer(str(folder), device="cpu", local_files_only=True)

    def __call__(self, case: Any) -> np.ndarray:
        given = self.given(case.content)
        if case.role is Role.CANDIDATE:
            return self.network.encode_document([given], normalize_embeddings=True)[0]
        prompt = self.prompt(case.instruction)
        return self.network.encode_query([given], prompt=prompt, normalize_embeddings=True)[0]

    def prompt(self, instruction: str) -> str | None:
        if not instruction or not self.network.prompts["query"].startswith("Instruct"):
            return None
        return f"Instruct: {instruction}\nQuery: "

    def given(self, content: Content) -> Any:
        if not content.images:
            return {"text": content.text}
        pictures = [images.decode(image.data, "") for image in content.images]
        if not content.texts and len(pictures) == 1:
            return {"image": pictures[0]}
        kinds = ["text" if isinstance(part, str) else "image" for part in content.parts]
        iterators = {"text": iter([content.text]), "image": iter(pictures)}
        parts = [{"type": kind, kind: next(iterators[kind])} for kind in kinds]
        return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module", params=PROMPTS)
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("st") / request.param
    return build_tiny_sentence_transformer(directory, prompts=PROMPTS[request.param])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_sentence_transformer(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multimodal model that reads chats: a Qwen3-VL, pooled at its last token."""
    base = build_tiny_qwen3_vl(tmp_path_factory.mktemp("qwen"))
    return _saved(base, tmp_path_factory.mktemp("chat"), pooling="lasttoken")


def _saved(base: Path, directory: Path, pooling: str = "", **settings: Any) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    network = modules.Transformer(str(base))
    chain: list[Any] = [network]
    if pooling:
        width = network.get_embedding_dimension()
        chain.append(modules.Pooling(width, pooling_mode=pooling, **settings))
    SentenceTransformer(modules=chain, device="cpu").save(str(directory), create_model_card=False)
    return directory


def opened(folder: Path, **settings: Any) -> EncoderModel:
    return open_encoder(EncoderChoice(str(folder), family="sentence-transformers", **settings))


def encode(
    model: EncoderModel, content: Content, role: Role = Role.QUERY, instruction: str = ""
) -> FloatMatrix:
    return encode_together(model, [model.prepare(content, role, instruction)])[0]


def read_by(model: EncoderModel, cases: Sequence[Any]) -> list[Any]:
    return [case for case in cases if case.content.modality in model.info.modalities]


def test_text_vectors_equal_the_library(
    folder: Path, parity_cases: Sequence[Any], check_parity: Callable[..., Any]
) -> None:
    model = open_encoder(EncoderChoice(str(folder)))
    assert model.info.modalities == {Modality.TEXT}
    assert model.info.follows_instructions == (folder.name == "instructed")
    check_parity(model, Library(folder), read_by(model, parity_cases))


def test_chats_of_texts_and_pictures_equal_the_library(
    chat: Path, parity_cases: Sequence[Any], check_parity: Callable[..., Any]
) -> None:
    model = opened(chat)
    assert model.info.modalities == set(Modality)
    check_parity(model, Library(chat), parity_cases)


def test_towers_of_pictures_equal_the_library(
    tmp_path: Path, parity_cases: Sequence[Any], check_parity: Callable[..., Any]
) -> None:
    folder = _saved(build_tiny_clip(tmp_path / "clip"), tmp_path / "st")
    model = opened(folder)
    assert model.info.modalities == {Modality.TEXT, Modality.IMAGE}
    cases = [case for case in read_by(model, parity_cases) if len(case.content.images) < 2]
    check_parity(model, Library(folder), cases)
    two = Content.of(probes.picture(0), probes.picture(1))
    with pytest.raises(InvalidField, match="several pictures"):
        model.prepare(two, Role.QUERY, "")


def test_a_picture_far_from_square_stays_small(tmp_path: Path) -> None:
    from mmesh.models.encoders import sentence_transformers

    folder = _saved(build_tiny_clip(tmp_path / "clip"), tmp_path / "st")
    model = sentence_transformers.load(folder, EncoderChoice(str(folder)))
    first, sizes = model._inputs._first, []
    process = first.preprocess

    def spy(contents: Any, **options: Any) -> Any:
        sizes.append(contents[0]["image"].size)
        return process(contents, **options)

    first.preprocess = spy
    for size in ((20_000, 1), (1, 20_000), (500, 7)):
        model.prepare(Content.of(encoded(Image.new("RGB", size), "PNG")), Role.QUERY, "")
        assert max(sizes[-1]) <= 18 * min(sizes[-1])


def test_prompts_stay_out_of_the_pooling_where_the_model_says_so(
    tmp_path: Path, parity_cases: Sequence[Any], check_parity: Callable[..., Any]
) -> None:
    base = build_tiny_sentence_transformer(tmp_path / "base")
    folder = _instructed(_saved(base, tmp_path / "st", pooling="mean", include_prompt=False))
    model = opened(folder)
    check_parity(model, Library(folder), read_by(model, parity_cases))

    query = Content.of("a red bicycle")
    asked = [model.prepare(query, Role.QUERY, "a " * length) for length in range(1, 9)]
    assert len({one.group for one in asked}) == 8
    assert {one.label for one in asked} == {"text"}


def _instructed(folder: Path) -> Path:
    config = folder / "config_sentence_transformers.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prompts": {"query": INSTRUCT}}))
    return folder


def test_an_instruction_that_leaves_no_room_is_refused(tmp_path: Path, chat: Path) -> None:
    base = build_tiny_sentence_transformer(tmp_path / "base")
    unpooled = _instructed(_saved(base, tmp_path / "st", "mean", include_prompt=False))
    chatting = _instructed(Path(shutil.copytree(chat, tmp_path / "chat")))
    for folder in (unpooled, chatting):
        model = opened(folder, max_text_tokens=128)
        for content in (Content.of("a red bicycle"), Content.of(probes.picture(0), "red")):
            if content.modality in model.info.modalities:
                for length in (80, 130):
                    with pytest.raises(InputTooLong, match="instruction is"):
                        model.prepare(content, Role.QUERY, "a " * length)
        assert np.isfinite(encode(model, Content.of("long " * 200), instruction="a " * 40)).all()


def test_a_limit_below_the_models_own_prompt_is_refused(tmp_path: Path) -> None:
    folder = build_tiny_sentence_transformer(tmp_path, prompts=PROMPTS["instructed"])
    with pytest.raises(FailedPrecondition, match="too few"):
        opened(folder, max_text_tokens=8)


def test_texts_that_name_files_and_addresses_are_texts(
    chat: Path, plain: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(probes.picture(0))
    for folder in (chat, plain):
        model = opened(folder)
        found = encode(model, Content.of(str(picture)))
        picture.unlink()
        np.testing.assert_allclose(found, encode(model, Content.of(str(picture))), atol=1e-6)
        picture.write_bytes(probes.picture(0))
        encode(model, Content.of("http://127.0.0.1:9/picture.png"))
        encode(model, Content.of("data:image/png;base64,AAAA"))


def test_published_weights_give_the_vectors_of_lite(tmp_path: Path) -> None:
    """MiniLM, once through torch and once through ONNX Runtime."""
    layout = runpy.run_path(str(ROOT / "benchmarks" / "minilm.py"))["lay_out"]
    model, lite = opened(layout(tmp_path / "minilm")), open_encoder(EncoderChoice())
    for text in ("a cat", "Übergröße, 你好 [SEP] ¿qué?", "long " * 300):
        content = Content.of(text)
        np.testing.assert_allclose(encode(model, content), encode(lite, content), atol=1e-5)


def test_special_tokens_in_a_text_are_words(chat: Path, plain: Path) -> None:
    from transformers import AutoTokenizer

    for folder in (chat, plain):
        model, tokenizer = opened(folder), AutoTokenizer.from_pretrained(folder)
        hostile = "".join(str(token) for token in tokenizer.added_tokens_decoder.values())
        special = set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}
        pictures = [probes.picture(0)] if folder == chat else []
        for parts in ([], pictures):
            counts = {
                _count(model.prepare(Content.of(*parts, text), Role.QUERY, asked), special)
                for text in ("words", hostile, f"{hostile}words{hostile}")
                for asked in ("", hostile)
            }
            assert len(counts) == 1


def _count(prepared: Prepared, special: set[int]) -> int:
    ids = prepared.payload["input_ids"][0].tolist()
    return sum(token in special for token in ids)


def test_texts_are_cut_where_the_model_ends(plain: Path) -> None:
    model = opened(plain)
    short, fitting, long = (
        model.prepare(Content.of("cat " * words), Role.QUERY, "") for words in (5, 126, 127)
    )
    assert model.info.max_text_tokens == 128
    assert [one.truncated for one in (short, fitting, long)] == [False, False, True]
    assert [one.cost for one in (short, fitting, long)] == [7, 128, 128]


def test_threads_prepare_what_one_does(chat: Path) -> None:
    model = opened(chat)
    contents = [*probes.texts()[:16], *probes.illustrated_texts()[:8], Content.of("a " * 5000)]
    with ThreadPoolExecutor(8) as threads:
        together = list(
            threads.map(lambda content: model.prepare(content, Role.QUERY, ""), contents * 2)
        )
    for content, prepared in zip(contents * 2, together, strict=True):
        vector = encode_together(model, [prepared])[0]
        np.testing.assert_allclose(vector, encode(model, content), atol=1e-6)


def test_a_broken_picture_is_named(chat: Path) -> None:
    content = Content.of("a cat", probes.picture(0)[:300])
    with pytest.raises(InvalidImage, match=r"content\.parts\[1\]\.image\.data"):
        opened(chat).prepare(content, Role.QUERY, "")


def test_a_short_vector_is_the_start_of_the_long_one(plain: Path) -> None:
    content = Content.of("a red square")
    whole, cut = encode(opened(plain), content), encode(opened(plain, dim=16), content)
    np.testing.assert_allclose(cut, whole[:16] / np.linalg.norm(whole[:16]), atol=1e-6)


def test_a_lower_limit_is_another_space(plain: Path) -> None:
    model = opened(plain, max_text_tokens=10)
    assert model.info.max_text_tokens == 10
    assert model.info.fingerprint != opened(plain).info.fingerprint


def test_networks_of_other_libraries_are_refused(plain: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(plain, tmp_path / "bare")
    (bare / "modules.json").unlink()
    with pytest.raises(FailedPrecondition, match=r"modules\.json"):
        opened(bare)


def test_weights_that_run_code_are_refused(plain: Path, tmp_path: Path) -> None:
    mixed = shutil.copytree(plain, tmp_path / "mixed")
    (mixed / "2_Dense").mkdir()
    (mixed / "2_Dense" / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(FailedPrecondition, match="would run code"):
        opened(mixed)


def test_models_without_a_transformer_are_refused(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    network = SentenceTransformer(modules=[StaticEmbedding(words, embedding_dim=8)], device="cpu")
    network.save(str(tmp_path), create_model_card=False)
    with pytest.raises(FailedPrecondition, match="StaticEmbedding"):
        opened(tmp_path)
