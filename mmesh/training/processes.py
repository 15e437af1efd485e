"""Data parallelism: the processes that `accelerate launch` or `torchrun` starts, one for each GPU.

Each embeds its share of a batch. The vectors of all are gathered, so that a query has the whole
batch for negatives; each computes the loss of all and passes back the gradients of its own share,
which are summed. So a step does what one process would do, but for the order of sums.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from mmesh.training.errors import TrainingError

Item = TypeVar("Item")
_PATIENCE = timedelta(days=2)
"""For the first process, which mines, measures and saves while the others wait."""


@dataclass(frozen=True, slots=True)
class Processes:
    """All processes of a run, as one of them sees them."""

    rank: int = 0
    """Of this one."""
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and talks to people."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return what this process does of all, which lies in turns with the others'."""
        return items[self.rank :: self.count]

    def gathered(self, rows: Tensor, total: int) -> Tensor:
        """Return the rows (total, dim) of all processes in order, given those of this one."""
        if self.count == 1:
            return rows
        most = -(-total // self.count)
        padded = rows.new_zeros(most, rows.shape[1])
        padded[: len(rows)] = rows
        each = [torch.empty_like(padded) for _ in range(self.count)]
        distributed.all_gather(each, padded)
        return torch.stack(each, dim=1).flatten(0, 1)[:total]

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Let each parameter have the gradients of all shares."""
        if self.count == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([one.flatten() for one in gradients])
        distributed.all_reduce(flat)
        sizes = [one.numel() for one in gradients]
        for parameter, gradient in zip(parameters, flat.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def total(self, number: int) -> int:
        """Return the sum of a number over all processes."""
        if self.count == 1:
            return number
        found = [0] * self.count
        distributed.all_gather_object(found, number)
        return sum(found)

    def lists(self, state: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return the states of all processes, in the order of their ranks."""
        if self.count == 1:
            return [list(state)]
        found: list[list[Tensor]] = [[] for _ in range(self.count)]
        distributed.all_gather_object(found, list(state))
        return found

    def alone(self, work: Callable[[], object]) -> None:
        """Do in the first process what writes files, while the others wait."""
        if self.is_first:
            work()
        if self.count > 1:
            distributed.barrier()


ALONE = Processes()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes that a launcher started, by its variables of the environment.

    Raises:
        TrainingError: all of them would run on one GPU.
    """
    count = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if count == 1:
        yield ALONE
        return
    on_gpus = device.startswith("cuda")
    if on_gpus:
        if device != "cuda":
            raise TrainingError(f"several processes cannot share {device}; let `device` be cuda")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if on_gpus else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()
