"""The trained part of `lite`: a small network from picture features to the space of the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mmesh.models.protocol import FloatMatrix
from mmesh.training.lite_model.outputs import save_arrays

# Three networks are trained and then joined to one, whose output is their mean.
SEEDS = (20, 21, 22)
THREADS = 2
EPOCHS = 60
BATCH = 1024
HIDDEN = 576
DROPOUT = 0.5
NOISE = 0.1
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
HIGHEST_SCALE = 60.0
# Share of the target that goes to names by likeness, and how sharply likeness counts.
MEANING_SHARE = 0.3
MEANING_SCALE = 20.0


@dataclass(frozen=True, slots=True)
class Lessons:
    """Pictures and what they are called, row by row."""

    features: FloatMatrix
    """Picture features (n, 1280)."""
    mirrored: FloatMatrix
    """Features of the mirror images."""
    texts: FloatMatrix
    """Vectors of several ways to name each picture (n, ways, 384)."""


def train(lessons: Lessons) -> dict[str, NDArray[np.float16]]:
    """Return the arrays of a head, by the names of `mmesh.models.encoders.lite.image.Head`."""
    torch.set_num_threads(THREADS)
    mean, spread = lessons.features.mean(axis=0), lessons.features.std(axis=0) + 1e-6
    views = [(part - mean) / spread for part in (lessons.features, lessons.mirrored)]
    networks = [_trained(seed, torch.tensor(np.stack(views)), lessons) for seed in SEEDS]
    values = {"mean": mean, "spread": spread, **_joined(networks)}
    return {name: np.ascontiguousarray(value, np.float16) for name, value in values.items()}


def write(path: Path, arrays: dict[str, NDArray[np.float16]]) -> None:
    """Write the head."""
    save_arrays(path, **arrays)


def _network(width: int, out: int) -> nn.Sequential:
    inner, outer = nn.Linear(width, HIDDEN), nn.Linear(HIDDEN, out)
    gelu = nn.GELU(approximate="tanh")
    return nn.Sequential(nn.Dropout(DROPOUT), inner, gelu, nn.Dropout(DROPOUT), outer)


def _trained(seed: int, views: Tensor, lessons: Lessons) -> nn.Sequential:
    torch.manual_seed(seed)
    network = _network(views.shape[2], lessons.texts.shape[2])
    _fit(network, views, lessons)
    return network


def _fit(network: nn.Sequential, views: Tensor, lessons: Lessons) -> None:
    texts = torch.tensor(lessons.texts)
    scale = nn.Parameter(torch.tensor(3.0))
    count = len(texts)
    steps = EPOCHS * (count // BATCH)
    parameters = [*network.parameters(), scale]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    for step in range(steps):
        if step % (count // BATCH) == 0:
            order = torch.randperm(count)
        rows = order[step % (count // BATCH) * BATCH :][:BATCH]
        loss = _loss(network, scale, _noisy(views, rows), _naming(texts, rows))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def _noisy(views: Tensor, rows: Tensor) -> Tensor:
    """Return one of the two views of each picture, slightly changed."""
    view = torch.randint(len(views), rows.shape)
    pixels = views[view, rows]
    return pixels + NOISE * torch.randn_like(pixels)


def _naming(texts: Tensor, rows: Tensor) -> Tensor:
    """Return one of the ways to name each picture."""
    return texts[rows, torch.randint(texts.shape[1], rows.shape)]


def _loss(network: nn.Sequential, scale: Tensor, features: Tensor, texts: Tensor) -> Tensor:
    """Return the contrastive loss in both directions.

    Most of the target is the picture's own name; the rest is shared by names of like meaning.
    """
    vectors = functional.normalize(network(features), dim=1)
    scores = vectors @ texts.T * scale.exp().clamp(max=HIGHEST_SCALE)
    alike = (texts @ texts.T * MEANING_SCALE).softmax(dim=1)
    wanted = (1 - MEANING_SHARE) * torch.eye(len(texts)) + MEANING_SHARE * alike
    loss = functional.cross_entropy
    return (loss(scores, wanted) + loss(scores.T, wanted)) / 2


def _joined(networks: Sequence[nn.Sequential]) -> dict[str, Any]:
    """Return the weights of one wide network whose output is the mean of the outputs."""
    states = [network.state_dict() for network in networks]
    parts = {name: [state[name].numpy() for state in states] for name in states[0]}
    return {
        "inner": np.concatenate([weight.T for weight in parts["1.weight"]], axis=1),
        "inner_bias": np.concatenate(parts["1.bias"]),
        "outer": np.concatenate([weight.T for weight in parts["4.weight"]]) / len(networks),
        "outer_bias": np.mean(parts["4.bias"], axis=0),
    }
