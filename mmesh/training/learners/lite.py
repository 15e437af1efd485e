"""`lite` in training: adapters on MiniLM, and the head of the picture tower, on a CPU.

The picture network stays as it is, so each picture is seen once and its features are kept.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mmesh.content import Content, Image, Role
from mmesh.models import images
from mmesh.models.compat import declare_torchvision_operators
from mmesh.models.encoders.lite import artefacts
from mmesh.models.encoders.lite.image import CLASS_SHARE, Head, ImageTower, class_vectors
from mmesh.models.encoders.lite.model import (
    IMAGE_COST,
    INSTRUCTION,
    LiteEncoder,
    Reading,
    load_lite,
)
from mmesh.models.encoders.lite.text import TokenBatch, Tokens
from mmesh.models.protocol import EncoderInfo, FloatMatrix, Prepared
from mmesh.training.errors import TrainingError, not_importable
from mmesh.training.learners.adapters import add_adapters, trained
from mmesh.training.learners.learner import Adapting
from mmesh.training.learners.weights import copy_folder, patch_weights

PICTURES = 50_000
"""Pictures of which is remembered what the picture network sees, 13 KB each: it never changes, so
all stages of a run share it."""
TEXTS_A_PASS = 32
"""With more, padding costs more than it saves."""
PICTURE_SHARE = 0.3
"""How much of the vector of a picture's query is its instruction, where it reads any."""
FILES = (
    artefacts.TEXT_GRAPH,
    artefacts.IMAGE_GRAPH,
    artefacts.TOKENIZER,
    artefacts.HEAD,
    artefacts.CLASSES,
    artefacts.VOCABULARY,
)
_LAYERS = r"\.(query|key|value|dense)$"


def write_base(folder: Path, reading: Reading) -> None:
    """Write the shipped model as a folder that can be trained and served.

    Raises:
        MmeshError: a part of `lite` is not installed.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(artefacts.DATA / name, folder / name)
    artefacts.unpack_weights(artefacts.text_archive(), folder / artefacts.TEXT_WEIGHTS)
    head = Head.load(folder / artefacts.HEAD)
    _write_head(folder, {name: getattr(head, name) for name in Head.__slots__})
    (folder / "config.json").write_text(json.dumps({"model_type": artefacts.MODEL_TYPE}) + "\n")
    _write_manifest(folder, reading)


def _write_head(folder: Path, arrays: dict[str, Any]) -> None:
    with (folder / artefacts.HEAD).open("wb") as file:
        values: dict[str, Any] = {n: np.asarray(one, np.float32) for n, one in arrays.items()}
        np.savez(file, **values)


def _write_manifest(folder: Path, reading: Reading) -> None:
    names = (*FILES, artefacts.TEXT_WEIGHTS)
    manifest = {
        "name": "lite, trained",
        "files": {name: artefacts.sha256_of(folder / name) for name in names},
        INSTRUCTION: asdict(reading),
    }
    (folder / artefacts.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


class HeadNetwork(nn.Module):  # type: ignore[misc]  # torch is not followed
    """The head as `Head` computes it, with gradients."""

    def __init__(self, head: Head, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(head.mean))
        self.register_buffer("spread", torch.tensor(head.spread))
        for name in ("inner", "inner_bias", "outer", "outer_bias"):
            setattr(self, name, nn.Parameter(torch.tensor(getattr(head, name))))
        self._dropout = dropout

    def forward(self, features: Tensor) -> Tensor:
        """Return unit vectors (n, 384) for features (n, 1280)."""
        standard = (features - self.mean) / self.spread
        hidden = functional.gelu(standard @ self.inner + self.inner_bias, approximate="tanh")
        hidden = functional.dropout(hidden, self._dropout, self.training)
        return functional.normalize(hidden @ self.outer + self.outer_bias, dim=1)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the picture network says of one picture, by view."""

    features: NDArray[np.float32] = field(repr=False)
    """(v, 1280)"""
    classes: NDArray[np.float32] = field(repr=False)
    """The guess by class names (v, 384)."""


@dataclass(frozen=True, slots=True)
class LiteLesson:
    """What one input brings."""

    tokens: Tokens | None
    pictures: tuple[Seen, ...]
    text_share: float


_SEEN: LRUCache[tuple[str, bytes], Seen] = LRUCache(PICTURES)
_seeing = threading.Lock()


class LiteLearner:
    """Implements `Learner` for a folder of `lite`."""

    def __init__(
        self, folder: Path, adapting: Adapting, threads: int = 2, max_text_tokens: int = 0
    ) -> None:
        torch.set_num_threads(threads)
        self._folder = folder
        self._encoder: LiteEncoder = load_lite(threads=threads, directory=folder)
        self._tower: ImageTower = self._encoder.image
        manifest = artefacts.read_manifest(folder)
        self._reading = Reading(**manifest[INSTRUCTION])
        self._max_tokens = max_text_tokens
        head = HeadNetwork(Head.load(folder / artefacts.HEAD), adapting.dropout)
        text = _text_network(folder)
        add_adapters(text, _LAYERS, adapting)
        self._modules = nn.ModuleDict({"text": text, "head": head})
        files = manifest["files"]
        self._sight = f"{files[artefacts.IMAGE_GRAPH]} {files[artefacts.CLASSES]}"

    @property
    def info(self) -> EncoderInfo:
        """Of the encoder that serves the folder that this began with."""
        return self._encoder.info

    @property
    def network(self) -> Any:
        """Text tower and head."""
        return self._modules

    def prepare(self, content: Content, role: Role, instruction: str) -> Prepared:
        """Tokenise the text and look at the pictures, each once."""
        text, share = self._reading.read(content, role, instruction)
        tokens = self._cut(self._encoder.text.tokenise([text])[0]) if text else None
        pictures = tuple(
            self._see(part.data, f"content.parts[{number}].image.data")
            for number, part in enumerate(content.parts)
            if isinstance(part, Image)
        )
        group = "image_text" if tokens and pictures else "text" if tokens else "image"
        cost = (len(tokens.ids) if tokens else 0) + IMAGE_COST * len(pictures)
        truncated = tokens is not None and tokens.truncated
        return Prepared(group, cost, LiteLesson(tokens, pictures, share), truncated)

    def _cut(self, tokens: Tokens) -> Tokens:
        if not self._max_tokens or len(tokens.ids) <= self._max_tokens:
            return tokens
        return Tokens((*tokens.ids[: self._max_tokens - 1], tokens.ids[-1]), truncated=True)

    def _see(self, data: bytes, path: str) -> Seen:
        key = self._sight, sha256(data).digest()
        with _seeing:
            if (seen := _SEEN.get(key)) is None:
                views = self._tower.views(images.decode(data, path))
                features, logits = self._tower.features(views)
                seen = Seen(features, class_vectors(logits, self._tower.class_names))
                _SEEN[key] = seen
        return seen

    def embed(self, inputs: Sequence[Prepared]) -> Tensor:
        """Return unit rows (n, 384)."""
        lessons: list[LiteLesson] = [one.payload for one in inputs]
        rows: Tensor = torch.zeros(len(lessons), 384)
        texts = [n for n, one in enumerate(lessons) if one.tokens is not None]
        shown = [n for n, one in enumerate(lessons) if one.pictures]
        shares = torch.tensor(
            [
                1.0 if not one.pictures else 0.0 if one.tokens is None else one.text_share
                for one in lessons
            ]
        )[:, None]
        if texts:
            vectors = self._texts([lessons[n].tokens for n in texts])
            rows = rows.index_add(0, torch.tensor(texts), vectors * shares[texts])
        if shown:
            vectors = self._pictures([lessons[n].pictures for n in shown])
            rows = rows.index_add(0, torch.tensor(shown), vectors * (1 - shares[shown]))
        return functional.normalize(rows, dim=1)

    def _texts(self, tokens: Sequence[Any]) -> Tensor:
        """Return unit rows of texts; like lengths share a pass."""
        order = sorted(range(len(tokens)), key=lambda n: len(tokens[n].ids))
        vectors = []
        for start in range(0, len(order), TEXTS_A_PASS):
            batch = TokenBatch.of([tokens[n] for n in order[start : start + TEXTS_A_PASS]])
            mask = torch.from_numpy(batch.mask)
            states = self._modules["text"](torch.from_numpy(batch.ids), mask).last_hidden_state
            total = (states * mask[:, :, None]).sum(dim=1)
            vectors.append(total / mask.sum(dim=1, keepdim=True))
        back = torch.tensor(order).argsort()
        return functional.normalize(torch.cat(vectors)[back], dim=1)

    def _pictures(self, pictures: Sequence[tuple[Seen, ...]]) -> Tensor:
        flat = [one for some in pictures for one in some]
        features = torch.from_numpy(np.concatenate([one.features for one in flat]))
        classes = torch.from_numpy(np.concatenate([one.classes for one in flat]))
        views = CLASS_SHARE * classes + (1 - CLASS_SHARE) * self._modules["head"](features)
        each = _unit_sums(functional.normalize(views, dim=1), [len(one.features) for one in flat])
        return _unit_sums(each, [len(some) for some in pictures])

    def save(self, folder: Path) -> None:
        """Write a folder that MMESH_ENCODER_MODEL serves."""
        copy_folder(self._folder, folder)
        patch_weights(folder, trained(self._modules["text"]))
        head = self._modules["head"].state_dict()
        _write_head(folder, {name: value.numpy() for name, value in head.items()})
        _write_manifest(folder, self._reading)


class LiteModel:
    """Implements `EncoderModel` with a learner's arithmetic, which remembers pictures."""

    def __init__(self, folder: Path, threads: int = 2) -> None:
        self._learner = LiteLearner(folder, Adapting(1), threads)

    @property
    def info(self) -> EncoderInfo:
        """As of the encoder that serves the folder."""
        return self._learner.info

    def prepare(self, content: Content, role: Role, instruction: str) -> Prepared:
        """As the learner does."""
        return self._learner.prepare(content, role, instruction)

    def collate(self, batch: Sequence[Prepared]) -> Sequence[Prepared]:
        """Leave the batch as it is."""
        return batch

    def forward(self, collated: Sequence[Prepared]) -> FloatMatrix:
        """Return unit rows (n, 384)."""
        with torch.no_grad():
            rows: FloatMatrix = self._learner.embed(collated).numpy()
            return rows


def _unit_sums(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the unit sums of the first `counts[0]` rows, of the next `counts[1]`, and so on."""
    owners = torch.repeat_interleave(torch.tensor(counts))
    sums = torch.zeros(len(counts), rows.shape[1]).index_add(0, owners, rows)
    return functional.normalize(sums, dim=1)


def _text_network(folder: Path) -> Any:
    declare_torchvision_operators()  # transformers may need them
    try:
        from safetensors.torch import load_file
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise not_importable(error) from None
    weights = load_file(folder / artefacts.TEXT_WEIGHTS)
    layers = 1 + max(int(name.split(".")[2]) for name in weights if ".layer." in name)
    width = weights["embeddings.word_embeddings.weight"].shape
    config = BertConfig(
        vocab_size=width[0],
        hidden_size=width[1],
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=weights["encoder.layer.0.intermediate.dense.weight"].shape[0],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    network = BertModel(config, add_pooling_layer=False)
    missing, _ = network.load_state_dict(weights, strict=False)
    if missing:
        raise TrainingError(f"{folder} lacks weights of MiniLM, such as {missing[0]}")
    return network.eval()


def is_lite(folder: Path) -> bool:
    """Tell whether a folder holds a `lite`."""
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("model_type") == artefacts.MODEL_TYPE
