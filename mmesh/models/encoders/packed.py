"""Sequence packing: transformers run over sequences that lie end to end, without padding.

A batch is one row of tokens (total, width), and attention (variable-length FlashAttention, arXiv
2307.08691) keeps the sequences apart. So a short text costs what it has, whatever is beside it,
and everything but attention is computed token by token.

The layers are those of transformers, as holders of weights: what is written here is how decoders of
Llama's kind (Mistral, Qwen3) use them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mmesh.models.cuda_graphs import FLASH_DTYPES, Slots


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each of n sequences lies in a row of tokens."""

    offsets: torch.Tensor
    """Where sequences begin, and where the last one ends (n + 1,), in int32."""
    longest: int
    """An upper bound of the lengths."""

    @classmethod
    def of(cls, lengths: Sequence[int], slots: Slots | None = None) -> Packing:
        """Return the packing of sequences of these lengths, on the CPU.

        With `slots`, empty sequences fill them up.
        """
        if slots is None:
            return cls(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), max(lengths))
        filled = [*lengths, *[0] * (slots.sequences - len(lengths))]
        return cls(Packing.of(filled).offsets, slots.longest)


Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines (total, 1, head_dim / 2) of rotary positions (RoPE, arXiv 2104.09864)."""


Fuse = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Returns a function compiled, or as it is."""


def as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function."""
    return function


def halves(cosines: torch.Tensor, sines: torch.Tensor) -> Rotation:
    """Return what transformers lays out twice (total, head_dim)."""
    half = cosines.shape[-1] // 2
    return cosines[:, None, :half], sines[:, None, :half]


def rotated(rows: torch.Tensor, angles: Rotation) -> torch.Tensor:
    """Return rows (total, heads, head_dim) turned by their positions, in their element type."""
    cosines, sines = angles
    first, second = rows.chunk(2, dim=-1)
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return torch.cat(turned, dim=-1).to(rows.dtype)


def attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    packing: Packing,
    *,
    causal: bool,
) -> torch.Tensor:
    """Return what each token of (total, heads, head_dim) finds in its own sequence.

    Keys and values may have fewer heads, each shared by as many of the queries (GQA, arXiv
    2305.13245). Rows behind the last sequence are undefined.
    """
    if queries.is_cuda and queries.dtype in FLASH_DTYPES:
        # What torch.nn.attention.varlen calls; its wrapping costs more than a short pass has.
        return torch.ops.aten._flash_attention_forward(
            queries, keys, values, packing.offsets, packing.offsets,
            packing.longest, packing.longest, 0.0, causal, False,
        )[0]  # fmt: skip
    return _one_by_one(queries, keys, values, packing.offsets, causal)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch is not followed
def _one_by_one(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    offsets: torch.Tensor,
    causal: bool,
) -> torch.Tensor:
    """Attend where there is no kernel for whole rows: on a CPU, and in float32."""
    shared = queries.shape[1] // keys.shape[1]
    lengths, total = offsets.diff().tolist(), int(offsets[-1])
    rows = [
        row[:total].repeat_interleave(times, dim=1).transpose(0, 1).split(lengths, dim=1)
        for row, times in ((queries, 1), (keys, shared), (values, shared))
    ]
    found = [
        functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=causal)[0]
        for q, k, v in zip(*rows, strict=True)
    ]
    behind = [queries[total:].transpose(0, 1)] if total < len(queries) else []
    return torch.cat([*found, *behind], dim=1).transpose(0, 1)


def rms_norm(norm: Any, rows: torch.Tensor) -> torch.Tensor:
    """Return what one of transformers' RMS norms does, by one kernel instead of six."""
    return functional.rms_norm(rows, norm.weight.shape, norm.weight, norm.variance_epsilon)


class Decoder:
    """The layers of a decoder of Llama's kind (Mistral, Qwen3), over packed sequences.

    What lies between two attentions is computed token by token, so it can be compiled once for any
    sequences; attention stays outside.

    Args:
        language: one of transformers' models.
        causal: whether a token sees only what is before it.
        fused: returns a function compiled, or as it is.
    """

    def __init__(self, language: Any, *, causal: bool, fused: Fuse = as_it_is) -> None:
        self._language = language
        self._causal = causal
        self._before, self._behind = fused(_before_attention), fused(_behind_attention)

    def __call__(
        self,
        states: torch.Tensor,
        positions: torch.Tensor,
        packing: Packing,
        places: torch.Tensor | None = None,
        added: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """Return the states (total, width) behind the last layer, not normalised.

        Args:
            states: embeddings of the tokens (total, width).
            positions: what the model's rotary embedding takes for one sequence of `total` tokens.
            packing: of the sequences.
            places: of some tokens (m,).
            added: what is added to their states behind each of the first layers (m, width).
        """
        cosines, sines = self._language.rotary_emb(states[None], positions)
        angles = halves(cosines[0], sines[0])
        for number, layer in enumerate(self._language.layers):
            if layer.gradient_checkpointing and layer.training:
                states = checkpoint(
                    self._through, layer, states, angles, packing, use_reentrant=False
                )
            else:
                states = self._through(layer, states, angles, packing)
            if number < len(added):
                states = states.index_add(0, places, added[number])
        return states

    def _through(
        self, layer: Any, states: torch.Tensor, angles: Rotation, packing: Packing
    ) -> torch.Tensor:
        queries, keys, values = self._before(layer, states, angles)
        found = attention(queries, keys, values, packing, causal=self._causal)
        return self._behind(layer, states, found)


def _before_attention(
    layer: Any, states: torch.Tensor, angles: Rotation
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries, keys and values (total, heads, head_dim) of states (total, width)."""
    own = layer.self_attn
    normed = rms_norm(layer.input_layernorm, states)
    queries, keys, values = (
        project(normed).unflatten(-1, (-1, own.head_dim))
        for project in (own.q_proj, own.k_proj, own.v_proj)
    )
    if hasattr(own, "q_norm"):
        queries, keys = rms_norm(own.q_norm, queries), rms_norm(own.k_norm, keys)
    return rotated(queries, angles), rotated(keys, angles), values


def _behind_attention(layer: Any, states: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Return the states behind the layer, of those before it and what attention found."""
    states = states + layer.self_attn.o_proj(found.flatten(1))
    mlp = layer.mlp
    normed = rms_norm(layer.post_attention_layernorm, states)
    return states + mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed))


def padded(rows: torch.Tensor, slots: Slots | None) -> torch.Tensor:
    """Return rows (..., total), with zeros up to the tokens of `slots`."""
    return rows if slots is None else functional.pad(rows, (0, slots.tokens - rows.shape[-1]))
