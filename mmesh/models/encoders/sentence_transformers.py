"""Any model of the sentence-transformers library (6.x): of texts, and multimodal where it says so.

The library makes the inputs and runs its modules; batches are ours, so that a vector does not
depend on what it is computed with.

Models whose first module is not the library's `Transformer` are refused, such as static embeddings
and routers, and folders without `modules.json`: the library would pool any network's states by
their mean, which gives vectors that only look right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmesh.content import Content, Modality, Role
from mmesh.errors import FailedPrecondition
from mmesh.models import hub
from mmesh.models.compat import declare_torchvision_operators
from mmesh.models.encoders.families import EncoderChoice
from mmesh.models.encoders.sentence_inputs import Features, Inputs, is_sequence
from mmesh.models.protocol import TEXT_UNKNOWN, EncoderInfo, FloatMatrix, Prepared
from mmesh.models.torch_runtime import Runtime

FAMILY = "sentence-transformers"
# Raised when code changes a vector that the files do not: prompts, cutting, joining of parts.
REVISION = 1
PATCH_NUMBERS = 3 * 16 * 16
"""Numbers of a picture that cost as much as a token: those of 16 x 16 pixels."""


class SentenceEncoder:
    """Implements `EncoderModel` with a `SentenceTransformer`."""

    def __init__(self, network: Any, inputs: Inputs, runtime: Runtime, info: EncoderInfo) -> None:
        self._network = network
        self._inputs = inputs
        self._runtime = runtime
        self._info = info

    @property
    def info(self) -> EncoderInfo:
        """Name, fingerprint, dim and limits; constant."""
        return self._info

    def prepare(self, content: Content, role: Role, instruction: str) -> Prepared:
        """Tokenise the text, decode and resize the pictures; thread-safe.

        Raises:
            InvalidField: a picture cannot be decoded, or the model's processor refuses the content;
                its path starts with `content`.
        """
        features, truncated = self._inputs.of(content, role, instruction)
        group = f"{content.modality.value} {_shared(features)}"
        notices = (TEXT_UNKNOWN,) if self._inputs.knows_no_word(content, role) else ()
        return Prepared(group, _cost(features), features, truncated, notices)

    def collate(self, batch: Sequence[Prepared]) -> Features:
        """Pad and stack the features of a group; thread-safe."""
        features = [prepared.payload for prepared in batch]
        return self._runtime.staged(merged(features, self._inputs.padding))

    def forward(self, collated: Features) -> FloatMatrix:
        """Return unit rows (n, dim), in order, for inputs of one group."""
        return self._runtime.unit_rows(self.rows, collated)

    @property
    def runtime(self) -> Runtime:
        """Where the network runs."""
        return self._runtime

    @property
    def network(self) -> torch.nn.Module:
        """The network, whose parameters a trainer may change."""
        return self._network

    def rows(self, features: Features) -> torch.Tensor:
        """Return rows (n, dim) on the device, not of unit length, of what `collate` made."""
        wide = {
            name: value.to(self._runtime.dtype)
            for name, value in features.items()
            if isinstance(value, torch.Tensor) and value.is_floating_point()
        }
        rows: torch.Tensor = self._network(features | wide)["sentence_embedding"]
        return rows


def merged(batch: Sequence[Features], padding: int) -> Features:
    """Return the features (1, ...) of inputs of one group as those of a batch (n, ...).

    What there is for each token is padded on the right: there padding leaves the tokens' positions
    as they are, whichever side a tokenizer would take.
    """
    first = batch[0]
    width = max(one["input_ids"].shape[1] for one in batch) if "input_ids" in first else 0
    return {
        name: _joined(
            [one[name] for one in batch],
            width if is_sequence(name, first) else 0,
            padding if name == "input_ids" else 0,
        )
        for name in first
    }


def _joined(values: Sequence[Any], width: int, padding: int) -> Any:
    """Return tensors as one, padded along the second axis to `width`; of other values the first."""
    if not isinstance(values[0], torch.Tensor):
        return values[0]
    if not width:
        return torch.cat(list(values))
    rows = []
    for value in values:
        missing = [0, 0] * (value.ndim - 2) + [0, width - value.shape[1]]
        rows.append(torch.nn.functional.pad(value, missing, value=padding))
    return torch.cat(rows)


def _shared(features: Features) -> str:
    """Return what inputs must have in common to be merged: settings, and shapes of pictures."""
    shapes = {
        name: tuple(value.shape[1:]) if isinstance(value, torch.Tensor) else value
        for name, value in features.items()
        if not is_sequence(name, features)
    }
    return str(shapes)


def _cost(features: Features) -> int:
    tokens = features["input_ids"].shape[1] if "input_ids" in features else 0
    pixels = features["pixel_values"].numel() if "pixel_values" in features else 0
    return int(tokens + -(-pixels // PATCH_NUMBERS))


def load(folder: Path, choice: EncoderChoice) -> SentenceEncoder:
    """Return the model in `folder`.

    Raises:
        FailedPrecondition: it is no model of the library, one of another kind, or one with weights
            that run code; or the device or element type is not there.
    """
    declare_torchvision_operators()
    import sentence_transformers

    _check_folder(folder)
    runtime = Runtime(choice.device, choice.dtype, choice.threads, compiling=choice.compile)
    network = sentence_transformers.SentenceTransformer(
        str(folder),
        device="cpu",
        trust_remote_code=choice.trust_remote_code,
        local_files_only=True,
        model_kwargs={"dtype": runtime.dtype, "use_safetensors": True},
    )
    inputs = Inputs(network, choice.max_text_tokens)
    info = EncoderInfo(
        name=hub.display_name(choice.model, folder),
        fingerprint=hub.fingerprint_of(
            folder,
            FAMILY,
            (REVISION, runtime.dtype_name, inputs.max_text_tokens),
            with_code=choice.trust_remote_code,
        ),
        dim=network.get_embedding_dimension(),
        modalities=_modalities(network),
        max_text_tokens=inputs.max_text_tokens,
        follows_instructions=inputs.prompts.instructed is not None,
        passes=runtime.passes,
    )
    return SentenceEncoder(runtime.placed(network), inputs, runtime, info)


def _check_folder(folder: Path) -> None:
    if not (folder / "modules.json").is_file():
        raise FailedPrecondition(
            f"{folder} has no modules.json, so it is no sentence-transformers model; "
            "save it with SentenceTransformer(modules=...).save, or choose its --family"
        )
    for path in folder.rglob("pytorch_model.bin"):
        if not (path.parent / "model.safetensors").is_file():
            raise FailedPrecondition(f"{path} would run code when read; save it as safetensors")


def _modalities(network: Any) -> frozenset[Modality]:
    names = {
        Modality.TEXT: "text",
        Modality.IMAGE: "image",
        Modality.IMAGE_TEXT: ("image", "text"),
    }
    return frozenset(modality for modality, name in names.items() if network.supports(name))
