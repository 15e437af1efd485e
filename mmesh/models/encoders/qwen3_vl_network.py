"""Qwen3-VL's network over packed sequences (arXiv 2511.21631), out of parts of transformers.

transformers' own forward pads texts, asks the device for sizes in the middle of a pass, and
attends picture by picture. Here all that depends on lengths and sizes is computed on the CPU
beforehand (`layout_of`), so that a pass is one run of kernels and the device never waits for us.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import linear

from mmesh.models.encoders import packed
from mmesh.models.encoders.packed import Decoder, Packing, Rotation
from mmesh.models.torch_runtime import Runtime

MERGE = 2
"""Patches a side that become one token."""
Grid = tuple[int, int]
"""Patches of a picture, down and across."""


@dataclass(frozen=True, slots=True)
class PictureLayout:
    """Where the patches of the pictures of a batch are; P patches in all."""

    patches: torch.Tensor
    """Pixels (P, channels * side * side), 0 to 255."""
    packing: Packing
    positions: torch.Tensor
    """Row and column of each patch (P, 2)."""
    corners: torch.Tensor
    """The four learned positions around each patch (P, 4)."""
    weights: torch.Tensor
    """How much each of them counts (P, 4)."""
    places: torch.Tensor
    """Where the pictures' tokens are in the row of tokens (P / 4,)."""


class Qwen3VLNetwork:
    """Runs a `Qwen3VLModel`, or a `Qwen3VLTextModel` on texts.

    Args:
        network: the model, on its device.
        runtime: where it runs.
        mean: what is taken off the pixels' channels, of 0 to 1.
        std: by what they are divided then.
    """

    def __init__(
        self,
        network: Any,
        runtime: Runtime,
        mean: Sequence[float] = (0.5,) * 3,
        std: Sequence[float] = (0.5,) * 3,
    ) -> None:
        self.module = network
        self.language = getattr(network, "language_model", network)
        self.visual: Any = getattr(network, "visual", None)
        self._mean, self._std = (
            torch.tensor(values, device=runtime.device).view(1, -1, 1, 1) for values in (mean, std)
        )
        self._decode = Decoder(self.language, causal=True, fused=runtime.fused)
        self._before, self._behind = map(runtime.fused, (_before_attention, _behind_attention))

    def __call__(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        packing: Packing,
        last: torch.Tensor,
        pictures: PictureLayout | None = None,
    ) -> torch.Tensor:
        """Return the states (n, dim) of the tokens at places `last`.

        Args:
            ids: of all tokens (total,).
            positions: in time, down and across (3, total).
            packing: of the sequences.
            last: places (n,).
            pictures: what stands at the places of pictures.
        """
        states = self.language.embed_tokens(ids)
        places: torch.Tensor | None = None
        deep: list[torch.Tensor] = []
        if pictures is not None:
            places = pictures.places
            seen, deep = self._see(pictures)
            states = states.index_copy(0, places, seen)
        states = self._decode(states, positions[:, None], packing, places, deep)
        return packed.rms_norm(self.language.norm, states[last])

    def _see(self, pictures: PictureLayout) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the tokens of the pictures, and what is added behind the first layers."""
        visual = self.visual
        states = self._embedded(pictures.patches)
        learned = visual.pos_embed(pictures.corners) * pictures.weights[:, :, None]
        states = states + learned.sum(dim=1).to(states.dtype)
        turns = (pictures.positions[:, :, None] * visual.rotary_pos_emb.inv_freq).flatten(1)
        angles = turns.cos()[:, None], turns.sin()[:, None]
        deep: list[torch.Tensor] = []
        for number, block in enumerate(visual.blocks):
            queries, keys, values = self._before(block, states, angles)
            found = packed.attention(queries, keys, values, pictures.packing, causal=False)
            states = self._behind(block, states, found)
            if number in visual.deepstack_visual_indexes:
                merger = visual.deepstack_merger_list[len(deep)]
                deep.append(merger(states))
        return visual.merger(states), deep

    def _embedded(self, patches: torch.Tensor) -> torch.Tensor:
        """Return the states of patches; a picture is a film whose frames are alike."""
        film = self.visual.patch_embed.proj  # a convolution without overlap: a matrix product
        channels, frames, side = film.in_channels, film.kernel_size[0], film.kernel_size[1]
        pixels = patches.view(-1, channels, side, side).float() / 255
        pixels = ((pixels - self._mean) / self._std).to(film.weight.dtype)
        pixels = pixels[:, :, None].expand(-1, -1, frames, -1, -1).flatten(1)
        return linear(pixels, film.weight.flatten(1), film.bias)


def _before_attention(
    block: Any, states: torch.Tensor, angles: Rotation
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries, keys and values (total, heads, head_dim) of states (total, width)."""
    own = block.attn
    rows = own.qkv(block.norm1(states)).unflatten(-1, (3, own.num_heads, -1))
    queries, keys, values = rows.unbind(1)
    return packed.rotated(queries, angles), packed.rotated(keys, angles), values


def _behind_attention(block: Any, states: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Return the states behind the block, of those before it and what attention found."""
    states = states + block.attn.proj(found.flatten(1))
    return states + block.mlp(block.norm2(states))


# -- what is computed beforehand, on the CPU


def patches_of(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return the patches (n, channels * side * side) of pixels (height, width, channels).

    Both sides are multiples of `MERGE * side`. Patches that become one token are neighbours.
    """
    height, width, channels = picture.shape
    down, across = height // side // MERGE, width // side // MERGE
    cut = picture.reshape(down, MERGE, side, across, MERGE, side, channels)
    return cut.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, channels * side * side)


def positions_of(ids: NDArray[np.int64], placeholder: int, grids: Sequence[Grid]) -> Any:
    """Return the positions (3, n) in time, down and across of one input's tokens (M-RoPE).

    Text goes on in all three. A picture stands still in time, and what follows it goes on behind
    its longer side.
    """
    positions = np.empty((3, len(ids)), np.int64)
    place = start = 0
    for down, across in grids:
        first = place + int(np.argmax(ids[place:] == placeholder))
        positions[:, place:first] = np.arange(start, start + first - place)
        start += first - place
        down, across = down // MERGE, across // MERGE
        place = first + down * across
        rows, columns = np.divmod(np.arange(down * across), across)
        positions[:, first:place] = start + np.stack([np.zeros_like(rows), rows, columns])
        start += max(down, across)
    positions[:, place:] = np.arange(start, start + len(ids) - place)
    return positions


@functools.lru_cache(maxsize=1024)
def _grid_layout(grid: Grid, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return positions (n, 2), corners (n, 4) and weights (n, 4) of the patches of one picture.

    Learned positions lie on a grid of `side` by `side`, which is stretched over the picture and
    interpolated bilinearly.
    """
    down, across = grid
    rows, columns = np.indices(grid).reshape(2, down // MERGE, MERGE, across // MERGE, MERGE)
    order = (rows.transpose(0, 2, 1, 3).ravel(), columns.transpose(0, 2, 1, 3).ravel())
    positions = torch.from_numpy(np.stack(order, axis=1))
    near: list[tuple[torch.Tensor, torch.Tensor]] = []
    for axis, length in enumerate(grid):
        stretched = torch.linspace(0, side - 1, length)[positions[:, axis]]
        below = stretched.long()
        share = stretched - below
        near.append(
            (
                torch.stack([below, (below + 1).clamp(max=side - 1)], 1),
                torch.stack([1 - share, share], 1),
            )
        )
    (rows_near, row_weights), (columns_near, column_weights) = near
    corners = (rows_near[:, :, None] * side + columns_near[:, None]).flatten(1)
    return positions, corners, (row_weights[:, :, None] * column_weights[:, None]).flatten(1)


def picture_layout(
    patches: Sequence[NDArray[np.uint8]],
    grids: Sequence[Grid],
    side: int,
    places: torch.Tensor,
) -> PictureLayout:
    """Return what `Qwen3VLNetwork` takes of the pictures of a batch."""
    positions, corners, weights = zip(*(_grid_layout(grid, side) for grid in grids), strict=True)
    return PictureLayout(
        torch.cat([torch.from_numpy(one) for one in patches]),  # numpy would hold the GIL
        Packing.of([down * across for down, across in grids]),
        torch.cat(positions),
        torch.cat(corners),
        torch.cat(weights),
        places,
    )
