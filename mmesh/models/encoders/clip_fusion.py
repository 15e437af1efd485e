"""CLIP, SigLIP and SigLIP 2, with score fusion for content of text and pictures.

The vector of an illustrated text is the sum of its text's and its picture's features at the length
that the towers give them, as CLIP_SF of UniIR does (arXiv 2311.17136; `fuse_embeddings` in its
`clip_scorefusion/clip_sf.py`); only the sum is brought to unit length.
UniIR has one picture in each content; here several count as their mean.

Plain CLIP and SigLIP models follow no instruction. Those that were trained the way of UniIR, told
by a `...ScoreFusion` among the `architectures` of `config.json`, read a query's instruction at the
start of its text, and all texts in UniIR's spelling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmesh.content import Content, Image, Modality, Role
from mmesh.models import hub, images
from mmesh.models.compat import declare_torchvision_operators
from mmesh.models.encoders.centre_crop import middle_of
from mmesh.models.encoders.families import EncoderChoice
from mmesh.models.protocol import TEXT_UNKNOWN, EncoderInfo, FloatMatrix, Prepared
from mmesh.models.text.marked import MarkedText, Tokens
from mmesh.models.torch_runtime import Runtime

FAMILY = "clip-fusion"
# Raised when code changes a vector that the files do not: fusion, cutting, spelling.
REVISION = 1

_Features = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class FusionInput:
    """What `collate` needs of one input: its tokens, its pictures, or both."""

    tokens: Tokens | None
    pictures: tuple[_Features, ...] = field(repr=False)
    """By picture what the picture tower takes, (1, ...) each."""


@dataclass(frozen=True, slots=True)
class FusionBatch:
    """What `forward` needs of a batch; a part that its group lacks is None."""

    text: _Features | None = field(repr=False)
    pictures: _Features | None = field(repr=False)
    counts: tuple[int, ...]
    """Pictures of each input."""


class ClipFusion:
    """Implements `EncoderModel` with the two towers of a CLIP."""

    def __init__(self, network: Any, towers: Towers, runtime: Runtime, info: EncoderInfo) -> None:
        self._network = network
        self._towers = towers
        self._runtime = runtime
        self._info = info

    @property
    def info(self) -> EncoderInfo:
        """Name, fingerprint, dim and limits; constant."""
        return self._info

    def prepare(self, content: Content, role: Role, instruction: str) -> Prepared:
        """Tokenise the joined texts, decode and resize the pictures; thread-safe.

        Raises:
            InvalidImage: a picture cannot be decoded; its path starts with `content`.
            InputTooLong: the instruction takes more than half of what the model reads.
        """
        text = self._text(content, role, instruction)
        tokens = self._towers.text.tokens(text) if text else None
        pictures = tuple(
            self._towers.pixels(part.data, f"content.parts[{number}].image.data")
            for number, part in enumerate(content.parts)
            if isinstance(part, Image)
        )
        places = max(len(tokens.ids), self._towers.text_width) if tokens else 0
        cost = places + self._towers.picture_cost * len(pictures)
        group = f"{'text' if tokens else ''}+{'pictures' if pictures else ''}"
        truncated = tokens is not None and tokens.truncated
        unknown = bool(content.texts) and self._towers.text.knows_no_word(content.text)
        notices = (TEXT_UNKNOWN,) if unknown else ()
        return Prepared(group, cost, FusionInput(tokens, pictures), truncated, notices)

    def collate(self, batch: Sequence[Prepared]) -> FusionBatch:
        """Pad the texts and stack the pictures of a group; thread-safe."""
        inputs: list[FusionInput] = [prepared.payload for prepared in batch]
        texts = [part.tokens for part in inputs if part.tokens is not None]
        pictures = [features for part in inputs for features in part.pictures]
        return self._runtime.staged(
            FusionBatch(
                text=self._towers.text.padded(texts, self._towers.text_width) if texts else None,
                pictures=_stacked(pictures) if pictures else None,
                counts=tuple(len(part.pictures) for part in inputs),
            )
        )

    def forward(self, collated: FusionBatch) -> FloatMatrix:
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

    def rows(self, batch: FusionBatch) -> torch.Tensor:
        """Return rows (n, dim) on the device, not of unit length, of what `collate` made."""
        parts = []
        if batch.text is not None:
            parts.append(self._texts(batch.text))
        if batch.pictures is not None:
            rows = self._pictures(batch.pictures).split(batch.counts)
            parts.append(torch.stack([row.mean(dim=0) for row in rows]))
        return torch.stack(parts).sum(dim=0)

    def _text(self, content: Content, role: Role, instruction: str) -> str:
        if not self._info.follows_instructions:
            return content.text
        asked = _as_uniir_spells(instruction) if role is Role.QUERY else ""
        if asked:
            self._towers.text.check_instruction(asked)
        # Of a text of quotes alone the spelling leaves nothing.
        return _as_uniir_spells(f"{asked} {content.text}") or content.text

    def _texts(self, features: _Features) -> torch.Tensor:
        rows: torch.Tensor = self._network.get_text_features(**features).pooler_output
        return rows.float()

    def _pictures(self, features: _Features) -> torch.Tensor:
        pixels = {"pixel_values": features["pixel_values"].to(self._runtime.dtype)}
        rows: torch.Tensor = self._network.get_image_features(**features | pixels).pooler_output
        return rows.float()


class Towers:
    """How the inputs of the two towers are made, and what they cost.

    Args:
        config: of the whole model, one of transformers'.
        tokenizer: one of transformers'.
        image_processor: one of transformers'.
        max_text_tokens: most tokens of a text; 0 for what the model reads.
    """

    def __init__(
        self, config: Any, tokenizer: Any, image_processor: Any, max_text_tokens: int
    ) -> None:
        longest = min(tokenizer.model_max_length, config.text_config.max_position_embeddings)
        self.max_text_tokens = min(max_text_tokens or longest, longest)
        self.text = MarkedText(tokenizer, self.max_text_tokens)
        # SigLIP was trained on texts padded to their full length, and reads the last place.
        self.text_width = 0 if config.model_type == "clip" else longest
        self.picture_cost = _picture_cost(config, image_processor)
        self._image_processor = image_processor

    def pixels(self, data: bytes, path: str) -> _Features:
        """Return what the picture tower takes, (1, ...) by name.

        Raises:
            InvalidImage: the picture cannot be decoded; `path` names the field.
        """
        picture = middle_of(images.decode(data, path), self._image_processor, path)
        return dict(self._image_processor(images=picture, return_tensors="pt"))


def load(folder: Path, choice: EncoderChoice) -> ClipFusion:
    """Return the model in `folder`, without a tower that `choice.modalities` does not need.

    Raises:
        FailedPrecondition: the device or element type is not there, or the limit is too low.
    """
    declare_torchvision_operators()
    import transformers

    runtime = Runtime(choice.device, choice.dtype, choice.threads, compiling=choice.compile)
    network = runtime.read(transformers.AutoModel, folder)
    towers = Towers(
        network.config,
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.AutoImageProcessor.from_pretrained(folder),
        choice.max_text_tokens,
    )
    info = _info(folder, choice, network.config, towers.max_text_tokens, runtime)
    _place(network, _needed_towers(info), runtime)
    return ClipFusion(network, towers, runtime, info)


def _info(
    folder: Path, choice: EncoderChoice, config: Any, max_text_tokens: int, runtime: Runtime
) -> EncoderInfo:
    is_clip = config.model_type == "clip"
    return EncoderInfo(
        name=hub.display_name(choice.model, folder),
        fingerprint=hub.fingerprint_of(
            folder, FAMILY, (REVISION, runtime.dtype_name, max_text_tokens)
        ),
        dim=config.projection_dim if is_clip else config.vision_config.hidden_size,
        modalities=frozenset(Modality) & (choice.modalities or frozenset(Modality)),
        max_text_tokens=max_text_tokens,
        follows_instructions=any("ScoreFusion" in name for name in config.architectures or ()),
        passes=runtime.passes,
    )


def _needed_towers(info: EncoderInfo) -> set[str]:
    texts = info.follows_instructions or info.modalities != {Modality.IMAGE}
    pictures = info.modalities != {Modality.TEXT}
    return {name for name, needed in (("text_model", texts), ("vision_model", pictures)) if needed}


def _place(network: Any, needed: set[str], runtime: Runtime) -> None:
    for name in ("text_model", "vision_model"):
        placed = runtime.placed(getattr(network, name)) if name in needed else None
        setattr(network, name, placed)
    network.to(runtime.device)  # what is left: the projections


def _picture_cost(config: Any, image_processor: Any) -> int:
    """Return how many tokens of text take as many operations as a picture, about."""
    text, vision = config.text_config, config.vision_config
    if config.model_type == "siglip2":
        patches = int(image_processor.max_num_patches)
    else:
        patches = (int(vision.image_size) // int(vision.patch_size)) ** 2
    return max(1, round(patches * _operations(vision) / _operations(text)))


def _operations(tower: Any) -> int:
    """Return the multiplications that the layers of a tower do at each place, about."""
    width = int(tower.hidden_size)
    return int(tower.num_hidden_layers) * width * (4 * width + 2 * int(tower.intermediate_size))


def _stacked(pictures: Sequence[_Features]) -> _Features:
    return {name: torch.cat([one[name] for one in pictures]) for name in pictures[0]}


def _as_uniir_spells(text: str) -> str:
    """Return the text as a sentence, the way of `format_string` in UniIR."""
    text = text.replace("\r", "").strip().strip('"')
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")
