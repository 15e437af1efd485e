"""MM-Embed's network out of parts of today's transformers (arXiv 2411.02571).

A picture goes through CLIP's tower and LLaVA's projector and takes the place of one token. Then
comes NV-Embed (2405.17428): Mistral without a causal mask, and a pooling over learned latents. The
order of the parts, the vector that follows each picture and the tensors' names are those of the
published code, which is for transformers 4.42.

transformers is imported where it is used, after `declare_torchvision_operators`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from mmesh.errors import FailedPrecondition
from mmesh.models.cuda_graphs import Slots
from mmesh.models.encoders import packed
from mmesh.models.encoders.packed import Decoder, Packing

_FIXED = {
    "add_eos_token": True,
    "global_image_patch_only": True,
    "vision_feature_select_strategy": "default",
}
"""Settings in config.json that the code here takes for granted."""
_RETRIEVERS: dict[str, Mapping[str, Any]] = {
    "nvidia/NV-Embed-v1": {
        "text_config": {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
        },
        "latent_attention_config": {
            "num_latents_value": 512,
            "num_cross_heads": 8,
            "cross_dim_head": 4096,
        },
    },
}
_ATTENTION = "latent_attention_model.cross_attend_blocks.0."
_FEED_FORWARD = "latent_attention_model.cross_attend_blocks.1."
_PUBLISHED = {
    "vision_tower.": "vision_tower.vision_model.",
    "pooling.latents": "latent_attention_model.latents",
    "pooling.token_norm.": f"{_ATTENTION}norm.",
    "pooling.latent_norm.": f"{_ATTENTION}norm_context.",
    "pooling.to_queries.": f"{_ATTENTION}fn.to_q.",
    "pooling.to_keys_and_values.": f"{_ATTENTION}fn.to_kv.",
    "pooling.to_tokens.": f"{_ATTENTION}fn.to_out.",
    "pooling.feed_forward_norm.": f"{_FEED_FORWARD}norm.",
    "pooling.widen.": f"{_FEED_FORWARD}fn.net.0.",
    "pooling.narrow.": f"{_FEED_FORWARD}fn.net.2.",
}
"""Starts of parameters' names, and of the published tensors' where they differ."""
_VISION = ("vision_tower.", "multi_modal_projector.", "image_newline")


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the network is built from."""

    llava: Any
    """A `LlavaNextConfig`; its `text_config` is the language model's that is used."""
    latents: int
    heads: int
    head_dim: int

    @property
    def dim(self) -> int:
        """The length of the vectors."""
        return int(self.llava.text_config.hidden_size)

    @property
    def max_positions(self) -> int:
        """The longest sequence that the language model was made for."""
        return int(self.llava.text_config.max_position_embeddings)

    @property
    def image_token(self) -> int:
        """The id that stands for a place of a picture."""
        return int(self.llava.image_token_index)

    @property
    def image_side(self) -> int:
        """Pixels of a picture's side, as the vision tower sees it."""
        return int(self.llava.vision_config.image_size)

    @property
    def image_tokens(self) -> int:
        """How many places of the sequence a picture takes: its patches and one vector more."""
        return int(self.image_side // self.llava.vision_config.patch_size) ** 2 + 1


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture that the model's config.json describes.

    `retriever` there names NV-Embed-v1, or holds `text_config` and `latent_attention_config` as
    NV-Embed's own config does. The `text_config` beside it is not used: it is that of the language
    model which NV-Embed's replaced, with another RoPE base.

    Raises:
        FailedPrecondition: something there is not as in the published model.
    """
    from transformers import LlavaNextConfig, MistralConfig

    for name, expected in _FIXED.items():
        if config.get(name) != expected:
            raise FailedPrecondition(f"MM-Embed's config.json must have {name} {expected!r}")
    retriever = config.get("retriever")
    retriever = _RETRIEVERS.get(retriever) if isinstance(retriever, str) else retriever
    parts = {"text_config", "latent_attention_config"}
    if not isinstance(retriever, Mapping) or not parts <= retriever.keys():
        known = ", ".join(_RETRIEVERS)
        raise FailedPrecondition(f"config.json must name a known retriever ({known}) or hold one")
    language = MistralConfig(**{**retriever["text_config"], "sliding_window": None})
    pooling = retriever["latent_attention_config"]
    return Architecture(
        llava=LlavaNextConfig(**{**config, "text_config": language}),
        latents=pooling["num_latents_value"],
        heads=pooling["num_cross_heads"],
        head_dim=pooling["cross_dim_head"],
    )


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """What the network takes of n sequences with `total` tokens, end to end."""

    ids: torch.Tensor
    """Token ids (total,), any at the places of pictures."""
    positions: torch.Tensor
    """Of the tokens in their sequences (total,)."""
    pooled: torch.Tensor
    """1.0 for tokens that count in the mean, else 0.0 (total,)."""
    packing: Packing
    pixels: torch.Tensor | None
    """Pictures (m, 3, side, side), in the order of their places."""
    places: torch.Tensor
    """Of the pictures among the tokens (m * image_tokens,)."""
    count: int
    slots: Slots | None
    """What tokens and sequences are padded to, for a recording."""


class LatentAttention(nn.Module):  # type: ignore[misc]  # torch is not followed
    """NV-Embed's pooling: each token looks at the latents, then the mean over tokens is taken."""

    def __init__(self, dim: int, latents: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.token_norm = nn.LayerNorm(dim)
        self.latent_norm = nn.LayerNorm(dim)
        self.to_queries = nn.Linear(dim, inner, bias=False)
        self.to_keys_and_values = nn.Linear(dim, 2 * inner, bias=False)
        self.to_tokens = nn.Linear(inner, dim, bias=False)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, 8 * dim)
        self.narrow = nn.Linear(4 * dim, dim)

    def forward(self, states: Any, pooled: Any, packing: Packing) -> Any:
        """Return the means (n, dim), in float32, of those states (total, dim) that are pooled.

        Args:
            states: of all sequences.
            pooled: 1 for states that count, else 0 (total,).
            packing: of the sequences.
        """
        states = states + self._attended(self.token_norm(states))
        states = states + self._fed_forward(self.feed_forward_norm(states))
        rows = torch.cat((states.float() * pooled[:, None], pooled[:, None]), dim=1)
        # In the order of the tokens: a sum whose order may vary gives vectors that do.
        sums = torch.segment_reduce(rows, "sum", offsets=packing.offsets.long(), unsafe=True)
        return sums[:, :-1] / sums[:, -1:]

    def _attended(self, tokens: Any) -> Any:
        keys, values = self.to_keys_and_values(self.latent_norm(self.latents)).chunk(2, dim=-1)
        rows = (self._by_head(part)[None] for part in (self.to_queries(tokens), keys, values))
        return self.to_tokens(scaled_dot_product_attention(*rows)[0].transpose(0, 1).flatten(1))

    def _by_head(self, rows: Any) -> Any:
        """Return rows (length, heads * d) as (heads, length, d)."""
        return rows.unflatten(-1, (self.heads, -1)).transpose(0, 1)

    def _fed_forward(self, tokens: Any) -> Any:
        passed, gates = self.widen(tokens).chunk(2, dim=-1)
        return self.narrow(passed * gelu(gates))


class MMEmbedNetwork(nn.Module):  # type: ignore[misc]  # torch is not followed
    """The whole network; without `reads_images` it has no vision tower and takes no pictures."""

    def __init__(self, architecture: Architecture, *, reads_images: bool = True) -> None:
        from transformers import CLIPVisionModel, MistralModel
        from transformers.models.llava_next import modeling_llava_next

        super().__init__()
        llava = architecture.llava
        self.image_token = architecture.image_token
        self.feature_layer = llava.vision_feature_layer
        if reads_images:
            self.vision_tower = CLIPVisionModel(llava.vision_config)
            self.multi_modal_projector = modeling_llava_next.LlavaNextMultiModalProjector(llava)
            self.image_newline = nn.Parameter(torch.randn(architecture.dim))
        self.language_model = MistralModel(llava.text_config)
        self.decode = Decoder(self.language_model, causal=False)
        self.pooling = LatentAttention(
            architecture.dim, architecture.latents, architecture.heads, architecture.head_dim
        )

    def forward(self, batch: PromptBatch) -> Any:
        """Return vectors (n, dim) in float32, not of unit length."""
        language = self.language_model
        states = language.embed_tokens(batch.ids)
        if batch.pixels is not None:
            states = states.index_copy(0, batch.places, self._seen(batch.pixels).flatten(0, 1))
        states = self.decode(states, batch.positions[None], batch.packing)
        states = packed.rms_norm(language.norm, states)
        return self.pooling(states, batch.pooled, batch.packing)

    def _seen(self, pixels: Any) -> Any:
        """Return what stands for pictures (m, 3, side, side): (m, image_tokens, dim)."""
        layers = self.vision_tower(
            pixels.to(self.image_newline.dtype), output_hidden_states=True
        ).hidden_states
        patches = self.multi_modal_projector(layers[self.feature_layer][:, 1:])
        newline = self.image_newline.expand(len(pixels), 1, -1)
        return torch.cat((patches, newline), dim=1)


def load_network(
    folder: Path, architecture: Architecture, dtype: Any, *, reads_images: bool = True
) -> MMEmbedNetwork:
    """Return the network with the published weights in `folder`, in `dtype`, on the CPU.

    Raises:
        FailedPrecondition: a tensor is missing, unknown or of another shape; it is named.
    """
    network = _without_values(architecture, dtype, reads_images)
    missing = {published_name(name): value for name, value in network.named_parameters()}
    for name, tensor in _tensors(folder):
        if not reads_images and name.startswith(_VISION):
            continue
        parameter = missing.pop(name, None)
        if parameter is None:
            raise FailedPrecondition(f"MM-Embed has no tensor {name!r}, or it is there twice")
        if parameter.shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(parameter.shape)}"
            raise FailedPrecondition(f"the tensor {name!r} has the shape {shapes}")
        parameter.data.copy_(tensor)
    if missing:
        raise FailedPrecondition(f"the weights lack {len(missing)} tensors, as {min(missing)!r}")
    return network


def published_name(name: str) -> str:
    """Return what the published weights call a parameter of `MMEmbedNetwork`."""
    for ours, theirs in _PUBLISHED.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _without_values(architecture: Architecture, dtype: Any, reads_images: bool) -> MMEmbedNetwork:
    """Return the network with any numbers, made in `dtype`, so that 16 GB never take 32.

    Buffers have their own element types.
    """
    from transformers.initialization import no_init_weights

    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():
            return MMEmbedNetwork(architecture, reads_images=reads_images)
    finally:
        torch.set_default_dtype(usual)


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield names and tensors, one in memory at a time."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                yield name, file.get_tensor(name)
