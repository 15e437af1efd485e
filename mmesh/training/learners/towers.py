"""The families on torch in training: the very code that serves them, with gradients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmesh.content import Content, Role
from mmesh.models import hub
from mmesh.models.encoders.families import EncoderChoice, family_of, load_family
from mmesh.models.protocol import Prepared
from mmesh.training.errors import TrainingError
from mmesh.training.learners.adapters import add_adapters, trained
from mmesh.training.learners.learner import Adapting
from mmesh.training.learners.weights import copy_folder, patch_weights


@dataclass(frozen=True, slots=True)
class Trains:
    """Which parameters of a family train."""

    adapted: str
    """Names of linear layers that get adapters."""
    whole: tuple[str, ...] = ()
    """Beginnings of names of parameters that train themselves."""


_PROJECTIONS = r"\.(q|k|v|o|gate|up|down)_proj$"
TRAINS = {
    "sentence-transformers": Trains(r"(query|key|value|dense|(q|k|v|o|out|gate|up|down)_proj)$"),
    "clip-fusion": Trains(r"((q|k|v|out)_proj|fc1|fc2|(text|visual)_projection)$"),
    "qwen3-vl-embedding": Trains(rf"(^|language_model\.)layers\.\d+\..*{_PROJECTIONS}"),
    "mm-embed": Trains(rf"^language_model\..*{_PROJECTIONS}", ("multi_modal_projector.",)),
}
"""Vision towers of the large models stay as they are, as in MM-Embed's recipe."""
SCORE_FUSION = "CLIPScoreFusion"


class TowerLearner:
    """Implements `Learner` for an encoder of a family on torch.

    Args:
        encoder: as its family opened it.
        family: its name.
        folder: the encoder's files, which `save` copies.
        adapting: which adapters it gets.
    """

    def __init__(self, encoder: Any, family: str, folder: Path, adapting: Adapting) -> None:
        trains = TRAINS.get(family)
        if trains is None:
            raise TrainingError(f"models of the family {family} cannot be trained")
        self._folder, self._family = folder, family
        self._encoder, self._network = encoder, encoder.network
        self._device = encoder.runtime.device
        encoder.runtime.records = False
        add_adapters(self._network, trains.adapted, adapting)
        for name, parameter in self._network.named_parameters():
            if trains.whole and name.startswith(trains.whole):
                parameter.requires_grad_(True)
        self._network.to(self._device)

    @property
    def network(self) -> Any:
        """The family's network."""
        return self._network

    def prepare(self, content: Content, role: Role, instruction: str) -> Prepared:
        """As the family does."""
        prepared: Prepared = self._encoder.prepare(content, role, instruction)
        return prepared

    def embed(self, inputs: Sequence[Prepared]) -> Tensor:
        """Return unit rows (n, dim)."""
        groups: dict[str, list[int]] = {}
        for place, one in enumerate(inputs):
            groups.setdefault(one.group, []).append(place)
        rows, places = [], []
        for some in groups.values():
            collated = self._encoder.collate([inputs[place] for place in some])
            rows.append(self._encoder.rows(self._encoder.runtime.moved(collated)).float())
            places += some
        back = torch.tensor(places, device=self._device).argsort()
        return functional.normalize(torch.cat(rows)[back], dim=1)

    def save(self, folder: Path) -> None:
        """Write a folder that MMESH_ENCODER_MODEL serves."""
        from mmesh.models.encoders.mm_embed_network import published_name

        rename = published_name if self._family == "mm-embed" else str
        copy_folder(self._folder, folder)
        patch_weights(folder, ((rename(name), values) for name, values in trained(self._network)))


def open_learner(folder: Path, adapting: Adapting, choice: EncoderChoice) -> TowerLearner:
    """Return the learner of the model in a folder.

    Raises:
        FailedPrecondition: the model cannot be opened.
        TrainingError: it cannot be trained.
    """
    family = family_of(hub.read_config(folder)) if choice.family == "auto" else choice.family
    encoder = load_family(family, folder, choice)
    return TowerLearner(encoder, family, folder, adapting)


def write_base(folder: Path, base: Path, *, reads_instructions: bool) -> None:
    """Write a model's folder as training starts from it.

    A CLIP that is to read instructions becomes one of UniIR's kind.

    Raises:
        OSError: it cannot be written.
    """
    copy_folder(base, folder)
    config = hub.read_config(folder)
    if reads_instructions and family_of(config) == "clip-fusion":
        names = [name for name in config.get("architectures") or () if "ScoreFusion" not in name]
        config["architectures"] = [*names, SCORE_FUSION]
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
