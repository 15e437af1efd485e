"""CUDA graphs: a pass over few tokens recorded once, and then replayed by a single launch.

A query's pass is hundreds of short kernels. Launched one by one they take several times as long as
they run, more so while other threads hold the interpreter. A recording has fixed sizes, so inputs
are padded to the next of a few (`Slots`); rows of padding belong to no sequence.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import torch

FLASH_DTYPES = (torch.float16, torch.bfloat16)
"""Element types for which attention is a kernel, not a loop over sequences."""
WIDTHS = (*range(64, 512, 64), *range(512, 2049, 256))
"""Tokens of recordings: padding costs a query little, and bulk work that runs in small batches
beside queries less than launching it kernel by kernel."""
MOST_LENGTH = 512
"""Tokens of the longest sequence of a recording: attention is laid out for it in every slot."""
LEAST_LENGTH = 16
"""Tokens of the shortest sequences that fill a recording's slots."""


class Slots(NamedTuple):
    """The size of a recording."""

    tokens: int
    sequences: int
    longest: int

    @classmethod
    def around(cls, lengths: Sequence[int]) -> Slots | None:
        """Return the smallest size that has room for these; None for more than are recorded."""
        place = bisect_left(WIDTHS, sum(lengths))
        if place == len(WIDTHS):
            return None
        width = WIDTHS[place]
        slots = cls(width, width // LEAST_LENGTH, min(width, MOST_LENGTH))
        fits = len(lengths) <= slots.sequences and max(lengths) <= slots.longest
        return slots if fits else None


class _Recording(NamedTuple):
    graph: Any
    inputs: list[torch.Tensor]
    rows: torch.Tensor


class Recorder:
    """Runs `function` on a dataclass of tensors, by recordings; one thread at a time."""

    def __init__(self, function: Callable[[Any], torch.Tensor]) -> None:
        self._function = function
        self._recordings: dict[Slots, _Recording] = {}
        self._pool: Any = None

    def __call__(self, batch: Any, slots: Slots) -> torch.Tensor:
        """Return what the function makes of a batch that is padded to `slots`."""
        found = self._recordings.get(slots)
        if found is None:
            found = self._recordings[slots] = self._record(batch)
        for own, given in zip(found.inputs, _tensors(batch), strict=True):
            own.copy_(given)
        found.graph.replay()
        return found.rows.clone()  # the next replay writes over it

    def _record(self, batch: Any) -> _Recording:
        own = each_tensor(batch, torch.Tensor.clone)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # what is made at first use must not be recorded
            for _ in range(2):
                self._function(own)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may prepare batches meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            rows = self._function(own)
        self._pool = graph.pool()
        return _Recording(graph, _tensors(own), rows)


def each_tensor(inputs: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return tensors changed, in a mapping, tuple or dataclass too; all else stays."""
    if isinstance(inputs, torch.Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {name: each_tensor(value, change) for name, value in inputs.items()}
    if type(inputs) is tuple:
        return tuple(each_tensor(value, change) for value in inputs)
    if is_dataclass(inputs) and not isinstance(inputs, type):
        values = {
            field.name: each_tensor(getattr(inputs, field.name), change) for field in fields(inputs)
        }
        return replace(inputs, **values)
    return inputs


def _tensors(batch: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    each_tensor(batch, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found
