"""CLIP, SigLIP and SigLIP 2 beside transformers' own features, fused the way of UniIR's CLIP_SF."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmesh.content import Content, Modality, Role
from mmesh.errors import FailedPrecondition, InputTooLong, InvalidImage
from mmesh.models import images, probes
from mmesh.models.encoders.families import EncoderChoice, open_encoder
from mmesh.models.protocol import EncoderModel, FloatMatrix, Prepared, encode_together
from mmesh.testing.tiny_models import BUILDERS
from tests.picture_bombs import encoded

pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None,
        reason="transformers is absent: run `make setup-models`",
    ),
]
ARCHITECTURES = ("clip", "siglip", "siglip2")
LIMITS = {"clip": 77, "siglip": 64, "siglip2": 64}
PADDING = {"clip": True, "siglip": "max_length", "siglip2": "max_length"}
"""As the model cards say: SigLIP was trained on texts padded to their full length."""


@dataclass(frozen=True)
class Reference:
    """Features by the model's own methods; an illustrated text's are summed as they are."""

    network: Any
    processor: Any
    architecture: str

    @classmethod
    def of(cls, folder: Path, architecture: str) -> Reference:
        from transformers import AutoModel, AutoProcessor

        network = AutoModel.from_pretrained(folder).eval()
        return cls(network, AutoProcessor.from_pretrained(folder), architecture)

    def __call__(self, case: Any) -> np.ndarray:
        return self.fused(case.content.text, case.content)

    def fused(self, text: str, content: Content) -> np.ndarray:
        parts = [self.text(text)] if text else []
        if content.images:
            parts.append(np.mean([self.picture(image.data) for image in content.images], axis=0))
        total: np.ndarray = np.sum(parts, axis=0)
        return total / np.linalg.norm(total)

    def text(self, text: str) -> np.ndarray:
        inputs = self.processor(
            text=[text],
            padding=PADDING[self.architecture],
            truncation=True,
            max_length=LIMITS[self.architecture],
            return_tensors="pt",
        )
        return self.features(self.network.get_text_features, inputs)

    def picture(self, data: bytes) -> np.ndarray:
        inputs = self.processor(images=[images.decode(data, "")], return_tensors="pt")
        return self.features(self.network.get_image_features, inputs)

    @staticmethod
    def features(method: Any, inputs: Any) -> np.ndarray:
        import torch

        with torch.no_grad():
            row: np.ndarray = method(**inputs).pooler_output[0].numpy()
        return row


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: Any) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BUILDERS[architecture](tmp_path_factory.mktemp(architecture), 0)


@pytest.fixture(scope="module")
def model(folder: Path) -> EncoderModel:
    return open_encoder(EncoderChoice(str(folder)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BUILDERS["clip"](tmp_path_factory.mktemp("clip-alone"), 0)


@pytest.fixture(scope="module")
def score_fusion(clip: Path) -> Path:
    return _as_score_fusion(clip)


def encode(
    model: EncoderModel, content: Content, role: Role = Role.QUERY, instruction: str = ""
) -> FloatMatrix:
    return encode_together(model, [model.prepare(content, role, instruction)])[0]


def test_vectors_equal_the_reference(
    model: EncoderModel, folder: Path, architecture: str, check_parity: Callable[..., Any]
) -> None:
    rows = check_parity(model, Reference.of(folder, architecture))
    similar = rows @ rows.T - np.eye(len(rows))
    assert np.median(similar) < 0.99, "the tiny model tells nothing apart"


def test_texts_are_cut_where_the_model_ends(model: EncoderModel, architecture: str) -> None:
    assert model.info.max_text_tokens == LIMITS[architecture]
    short, long = (
        model.prepare(Content.of(text), Role.QUERY, "") for text in ("a cat", "a cat " * 100)
    )
    assert (short.truncated, long.truncated) == (False, True)
    assert long.cost == LIMITS[architecture]
    assert (short.cost < long.cost) == (PADDING[architecture] is True)


def test_special_tokens_in_a_text_are_words(model: EncoderModel, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = " ".join(("one", *tokenizer.all_special_tokens, "two"))
    ids = model.prepare(Content.of(text), Role.QUERY, "").payload.tokens.ids
    marks = tokenizer("one").input_ids
    inside = ids[1:-1] if ids[0] == marks[0] and marks[0] in tokenizer.all_special_ids else ids[:-1]
    allowed = {tokenizer.unk_token_id}
    assert not set(inside) & (set(tokenizer.all_special_ids) - allowed)


def test_pictures_cost_what_they_take(model: EncoderModel, architecture: str) -> None:
    text, picture = Content.of("a cat"), Content.of(probes.picture(0))
    pair, two = Content.of(probes.picture(0), "a cat"), Content.of(*[probes.picture(0)] * 2)
    costs = [model.prepare(c, Role.QUERY, "").cost for c in (text, picture, pair, two)]
    assert costs[1] == {"clip": 16, "siglip": 16, "siglip2": 256}[architecture]  # patches
    assert costs[2] == costs[0] + costs[1]
    assert costs[3] == 2 * costs[1]


def test_one_tower_answers_as_both_do(model: EncoderModel, folder: Path) -> None:
    for modality, content in (
        (Modality.TEXT, Content.of("a red square")),
        (Modality.IMAGE, Content.of(probes.picture(5))),
    ):
        part = open_encoder(EncoderChoice(str(folder), modalities=frozenset({modality})))
        assert part.info.modalities == {modality}
        assert part.info.fingerprint == model.info.fingerprint
        np.testing.assert_allclose(encode(part, content), encode(model, content), atol=1e-6)


def test_one_tower_holds_half_of_the_weights(folder: Path) -> None:
    from mmesh.models.encoders.clip_fusion import load

    texts = frozenset({Modality.TEXT})
    whole, part = (
        sum(p.numel() for p in load(folder, choice)._network.parameters())
        for choice in (EncoderChoice(str(folder)), EncoderChoice(str(folder), modalities=texts))
    )
    assert part < 0.8 * whole


def test_threads_prepare_what_one_does(model: EncoderModel) -> None:
    contents = [*probes.texts()[:24], *probes.illustrated_texts()] * 2
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda c: encode(model, c), contents))
    for content, vector in zip(contents, together, strict=True):
        np.testing.assert_allclose(vector, encode(model, content), atol=1e-6)


def test_a_broken_picture_is_named(model: EncoderModel) -> None:
    content = Content.of("a cat", probes.picture(0)[:300])
    with pytest.raises(InvalidImage, match=r"content\.parts\[1\]\.image\.data"):
        model.prepare(content, Role.QUERY, "")


def test_a_picture_far_from_square_stays_small(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmesh.models.encoders import clip_fusion

    model = clip_fusion.load(clip, EncoderChoice(str(clip)))
    process, sizes = model._towers._image_processor, []

    def spy(images: Image.Image, **options: Any) -> Any:
        sizes.append(images.size)
        return process(images=images, **options)

    spy.__dict__ |= {name: getattr(process, name) for name in ("size", "crop_size")}
    spy.__dict__["do_center_crop"] = True
    monkeypatch.setattr(model._towers, "_image_processor", spy)
    for size in ((20_000, 1), (1, 20_000), (500, 7)):
        model.prepare(Content.of(encoded(Image.new("RGB", size), "PNG")), Role.QUERY, "")
        assert max(sizes[-1]) <= 18 * min(sizes[-1])


def test_plain_clip_reads_no_instruction(clip: Path) -> None:
    model = open_encoder(EncoderChoice(str(clip)))
    assert not model.info.follows_instructions
    query = Content.of("a cat")
    np.testing.assert_array_equal(encode(model, query), encode(model, query, instruction="Find."))


def test_clip_trained_as_uniir_reads_instructions_before_the_text(
    score_fusion: Path, check_parity: Callable[..., Any]
) -> None:
    model = open_encoder(EncoderChoice(str(score_fusion)))
    reference = Reference.of(score_fusion, "clip")

    def uniir(case: Any) -> np.ndarray:
        prompt = _formatted(case.instruction if case.role is Role.QUERY else "")
        return reference.fused(_formatted(f"{prompt} {case.content.text}"), case.content)

    assert model.info.follows_instructions
    check_parity(model, uniir)


@pytest.mark.parametrize("text", ['"', '"" ""', '"\r"'])
def test_a_text_of_quotes_alone_has_a_vector(score_fusion: Path, text: str) -> None:
    model = open_encoder(EncoderChoice(str(score_fusion)))
    for role in Role:
        assert np.isfinite(encode(model, Content.of(text), role)).all()


def test_an_instruction_that_leaves_no_room_is_refused(score_fusion: Path, clip: Path) -> None:
    long, content = "a " * 80, Content.of("a red bicycle")
    model = open_encoder(EncoderChoice(str(score_fusion)))
    with pytest.raises(InputTooLong, match="instruction is"):
        model.prepare(content, Role.QUERY, long)
    assert encode(model, content, instruction="a " * 30) @ encode(model, content) < 1
    for unaware in (model.prepare(content, Role.CANDIDATE, long), _plain(clip, content, long)):
        assert not unaware.truncated


def _plain(clip: Path, content: Content, instruction: str) -> Prepared:
    return open_encoder(EncoderChoice(str(clip))).prepare(content, Role.QUERY, instruction)


def _as_score_fusion(clip: Path) -> Path:
    """Change the config of a copy into that of a model that was trained the way of UniIR."""
    trained = clip.with_name("score-fusion")
    shutil.copytree(clip, trained)
    config = json.loads((trained / "config.json").read_text())
    config["architectures"] = ["CLIPScoreFusion"]
    (trained / "config.json").write_text(json.dumps(config))
    return trained


def _formatted(text: str) -> str:
    """What UniIR's `format_string` is documented to do: strip, capitalise, end with a period."""
    text = text.replace("\r", "").strip().strip('"')
    if text:
        text = text[0].upper() + text[1:]
        text += "" if text.endswith((".", "?", "!")) else "."
    return text


def test_half_precision_stays_close(clip: Path) -> None:
    full, half = (
        open_encoder(EncoderChoice(str(clip), dtype=dtype)) for dtype in ("float32", "bfloat16")
    )
    pair = Content.of(probes.picture(1), "a cat")
    assert full.info.fingerprint != half.info.fingerprint
    assert encode(half, pair).dtype == np.float32
    assert encode(full, pair) @ encode(half, pair) > 0.99


def test_a_lower_limit_is_another_space(clip: Path) -> None:
    model = open_encoder(EncoderChoice(str(clip), max_text_tokens=10))
    assert model.info.max_text_tokens == 10
    assert model.info.fingerprint != open_encoder(EncoderChoice(str(clip))).info.fingerprint
    with pytest.raises(FailedPrecondition, match="too few"):
        open_encoder(EncoderChoice(str(clip), max_text_tokens=2))
