"""The embedded encoder: real graphs, real weights."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Encoding, Tokenizer

from mmesh.content import Content, Modality, Role
from mmesh.errors import DataLoss, InvalidImage
from mmesh.models.encoders.lite import LiteEncoder, artefacts, load_lite
from mmesh.models.protocol import FloatMatrix, Prepared, encode_together

TOLERANCE = 1e-5
GOLDEN = json.loads((Path(__file__).parent / "lite_golden.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def lite() -> LiteEncoder:
    return load_lite()


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


TEXTS = ("a dog", "x", "a longer description of a red car by the sea " * 8, "Käse", "word " * 400)
CONTENTS = {
    Modality.TEXT: [Content.of(text) for text in TEXTS],
    Modality.IMAGE: [
        *(Content.of(picture(seed)) for seed in range(4)),
        Content.of(picture(4, (300, 20)), picture(5)),
    ],
    Modality.IMAGE_TEXT: [
        *(Content.of(text, picture(seed)) for seed, text in enumerate(TEXTS)),
        Content.of(picture(7), "a", picture(8), "b"),
    ],
}


def prepared(lite: LiteEncoder, contents: Sequence[Content]) -> list[Prepared]:
    return [lite.prepare(content, Role.CANDIDATE, "") for content in contents]


def embed(lite: LiteEncoder, *contents: Content) -> FloatMatrix:
    return encode_together(lite, prepared(lite, contents))


@pytest.mark.parametrize("modality", list(Modality))
def test_a_vector_is_the_same_alone_in_a_batch_and_in_any_order(
    lite: LiteEncoder, modality: Modality
) -> None:
    inputs = prepared(lite, CONTENTS[modality])
    batch = encode_together(lite, inputs)
    alone = np.concatenate([encode_together(lite, [one]) for one in inputs])
    order = np.random.default_rng(0).permutation(len(inputs))
    shuffled = encode_together(lite, [inputs[place] for place in order])
    np.testing.assert_allclose(alone, batch, atol=TOLERANCE)
    np.testing.assert_allclose(shuffled, batch[order], atol=TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(batch, axis=1), 1, atol=TOLERANCE)


@pytest.mark.parametrize("modality", list(Modality))
def test_content_is_prepared_in_the_group_of_its_modality(
    lite: LiteEncoder, modality: Modality
) -> None:
    assert {one.group for one in prepared(lite, CONTENTS[modality])} == {modality.value}


def test_openvino_gives_the_same_vectors(lite: LiteEncoder) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is absent: run `make setup-all`")
    other = load_lite("openvino")
    assert other.info.fingerprint == lite.info.fingerprint
    for contents in CONTENTS.values():
        np.testing.assert_allclose(embed(other, *contents), embed(lite, *contents), atol=TOLERANCE)


def test_text_vectors_are_those_of_minilm(lite: LiteEncoder) -> None:
    for text, first in GOLDEN["text"].items():
        np.testing.assert_allclose(embed(lite, Content.of(text))[0, : len(first)], first, atol=1e-5)


def test_names_of_special_tokens_are_ordinary_text(lite: LiteEncoder) -> None:
    special = {0, 101, 102, 103}
    for name in ("[SEP]", "[CLS]", "[PAD]", "[MASK]", "a[SEP]b"):
        ids = lite.text.tokenise([name])[0].ids
        assert (ids[0], ids[-1]) == (101, 102)
        assert len(ids) > 3
        assert not special & set(ids[1:-1])


def test_long_text_is_cut_and_says_so(lite: LiteEncoder) -> None:
    long, short = prepared(lite, [Content.of("word " * 300), Content.of("word")])
    assert (long.truncated, long.cost) == (True, lite.info.max_text_tokens)
    assert (short.truncated, short.cost) == (False, 3)


@pytest.mark.parametrize("text", ["word " * 100_000, "x" * 20_000 + " tail", "é" * 9_000])
def test_only_the_head_of_a_huge_text_decides(lite: LiteEncoder, text: str) -> None:
    whole = lite.text._tokenizer.encode(text).ids
    assert list(lite.text.tokenise([text])[0].ids[1:-1]) == whole[:254]


@settings(max_examples=30, deadline=None)  # about a second
@given(
    st.lists(
        st.sampled_from(
            ["word ", "!", " ", "\n", "\x00", "\u3000", "e\u0301", "界", "zyx", "z" * 99]
        ).flatmap(lambda piece: st.integers(0, 9000).map(lambda times: piece * times)),
        max_size=5,
    ).map("".join)
)
def test_the_tokens_of_any_text_are_the_first_of_the_whole(lite: LiteEncoder, text: str) -> None:
    text = text[:50_000]
    whole = lite.text._tokenizer.encode(text).ids
    tokens = lite.text.tokenise([text])[0]
    assert (list(tokens.ids[1:-1]), tokens.truncated) == (whole[:254], len(whole) > 254)


class CountingTokenizer:
    """The part of a tokenizer that lets other threads run; counts the characters that it reads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.characters = 0

    def encode_batch_fast(self, texts: list[str], **options: bool) -> list[Encoding]:
        self.characters += sum(map(len, texts))
        read: list[Encoding] = self._tokenizer.encode_batch_fast(texts, **options)
        return read


@pytest.mark.parametrize(
    "text",
    [" " * 8192 + "word " * 200_000, ("z" * 120 + " ") * 9000, "a" + " " * 9000 + "!" * 10**6],
)
def test_no_more_of_a_huge_text_is_read_than_its_first_tokens_need(
    lite: LiteEncoder, text: str
) -> None:
    counting = CountingTokenizer(lite.text._tokenizer)
    tower = copy(lite.text)
    tower._tokenizer = cast(Tokenizer, counting)
    assert tower.tokenise([text])[0] == lite.text.tokenise([text])[0]
    assert counting.characters < len(text) / 5


def test_texts_are_joined_by_line_breaks_and_pictures_by_their_mean(lite: LiteEncoder) -> None:
    joined = embed(lite, Content.of("a", "b"), Content.of("a\nb"))
    np.testing.assert_allclose(joined[0], joined[1], atol=TOLERANCE)
    one, two, both = (Content.of(picture(1)), Content.of(picture(2)), None)
    both = Content.of(picture(1), picture(2))
    vectors = embed(lite, one, two, both)
    mean = vectors[0] + vectors[1]
    np.testing.assert_allclose(vectors[2], mean / np.linalg.norm(mean), atol=TOLERANCE)


def test_token_vectors_are_unit_rows_without_marks(lite: LiteEncoder) -> None:
    tokens = lite.text.tokenise(["a dog", "[SEP]", "one two three"])
    vectors = lite.text.token_vectors(tokens)
    assert [len(rows) for rows in vectors] == [2, 3, 3]
    for rows in vectors:
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=TOLERANCE)


def test_a_broken_picture_is_named_by_its_part(lite: LiteEncoder) -> None:
    with pytest.raises(InvalidImage) as caught:
        lite.prepare(Content.of("a", b"no picture"), Role.QUERY, "")
    assert caught.value.field == "content.parts[1].image.data"


def test_an_extreme_picture_takes_little_memory(lite: LiteEncoder) -> None:
    thin = Image.new("RGB", (20_000, 1))
    assert lite.image.prepare(thin).shape == (3, 224, 224)


def test_words_are_different_and_at_most_seven(lite: LiteEncoder) -> None:
    pixels = np.stack([lite.image.prepare(Image.new("RGB", (9, 9), color)) for color in ("red", 0)])
    words = lite.image.words(pixels)
    assert [len(row) for row in words] == [7, 7]
    assert all(len(set(row)) == len(row) for row in words)


def test_calibration_vectors_are_of_every_modality(lite: LiteEncoder) -> None:
    shapes = {kind: rows.shape for kind, rows in lite.info.calibration.items()}
    assert shapes == {
        Modality.TEXT: (256, 384),
        Modality.IMAGE: (128, 384),
        Modality.IMAGE_TEXT: (128, 384),
    }


def test_a_row_of_the_calibration_shows_one_thing_in_every_modality(lite: LiteEncoder) -> None:
    texts, images, pairs = (lite.info.calibration[kind][:128] for kind in Modality)
    for shown in (images, pairs):
        scores = shown @ texts.T
        assert np.diag(scores).mean() > scores.mean() + 0.3


def test_shipped_files_are_those_of_the_manifest() -> None:
    hashes = artefacts.verify()
    assert {path.name for path in artefacts.DATA.iterdir()} == {*hashes, artefacts.MANIFEST}
    assert sum(path.stat().st_size for path in artefacts.DATA.iterdir()) < 25_000_000


def test_a_damaged_file_is_found(tmp_path: Path) -> None:
    for path in artefacts.DATA.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    head = tmp_path / artefacts.HEAD
    head.write_bytes(head.read_bytes()[:-1] + b"x")
    with pytest.raises(DataLoss, match=artefacts.HEAD):
        artefacts.verify(tmp_path)


def test_weights_are_unpacked_once_and_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(artefacts.CACHE_VARIABLE, str(tmp_path))
    graph = artefacts.text_graph()
    weights = graph.parent / artefacts.TEXT_WEIGHTS
    first = weights.stat().st_mtime_ns
    assert artefacts.text_graph() == graph
    assert weights.stat().st_mtime_ns == first
    weights.write_bytes(b"broken")
    artefacts.text_graph()
    assert artefacts.sha256_of(weights) == artefacts.TEXT_WEIGHTS_SHA256
    assert {path.name for path in graph.parent.iterdir()} == {graph.name, weights.name}


def flat(size: tuple[int, int], colour: str, margin: str = "") -> bytes:
    """A picture of one colour, or of another at its right margin, which no middle square shows."""
    image, buffer = Image.new("RGB", size, colour), io.BytesIO()
    image.paste(margin or colour, (size[0] - 20, 0, *size))
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_what_equals_any_other_is_noticed(lite: LiteEncoder) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (250, 250, 250)).save(buffer, "PNG")
    contents = {
        "car": Content.of("a car 🚗"),
        "emoji": Content.of("🚗"),
        "picture": Content.of(picture(1)),
        "blank": Content.of(buffer.getvalue()),
        "wide and blank": Content.of(flat((300, 100), "red")),
        "wide": Content.of(flat((300, 100), "red", "blue")),
        "both": Content.of("🚀", picture(1), buffer.getvalue()),
    }
    said = {name: lite.prepare(one, Role.CANDIDATE, "").notices for name, one in contents.items()}
    assert said == {
        "car": (),
        "emoji": ("TEXT_UNKNOWN",),
        "picture": (),
        "blank": ("IMAGE_BLANK",),
        "wide and blank": ("IMAGE_BLANK",),
        "wide": (),
        "both": ("TEXT_UNKNOWN", "IMAGE_BLANK"),
    }
