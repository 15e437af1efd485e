"""Cached gradients (GradCache, arXiv 2101.06983): large contrastive batches in little memory.

All is embedded without a graph first. The loss then gives the gradient of each vector, and chunk by
chunk is embedded again, with the same random numbers, to pass it on. So memory is that of a chunk.

Several processes embed a share each, see `mmesh.training.processes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Input = TypeVar("Input")
Result = TypeVar("Result")
Embed = Callable[[Sequence[Input]], Tensor]


def as_they_are(rows: Tensor) -> Tensor:
    """Return the rows."""
    return rows


def backward(
    embed: Callable[[Sequence[Input]], Tensor],
    inputs: Sequence[Input],
    loss_of: Callable[[Tensor], tuple[Tensor, Result]],
    chunk: int,
    gather: Callable[[Tensor], Tensor] = as_they_are,
    share: Callable[[Tensor], Tensor] = as_they_are,
) -> Result:
    """Add the gradients of a loss over all vectors; return what `loss_of` says beside it.

    Args:
        embed: inputs to vectors (n, dim), in order.
        inputs: all of the batch, or the share of this process.
        loss_of: the vectors of the batch to a loss and anything else.
        chunk: inputs that are embedded with a graph at a time; 0 for all.
        gather: the vectors of `inputs` to those of the batch.
        share: rows of the batch to those of `inputs`.
    """
    chunk = chunk or len(inputs)
    chunks = [inputs[start : start + chunk] for start in range(0, len(inputs), chunk)]
    is_whole = len(chunks) == 1
    states, vectors = [], []
    with torch.set_grad_enabled(is_whole):
        for some in chunks:
            states.append(random_state())
            vectors.append(embed(some))
    leaf = gather(torch.cat(vectors).detach()).requires_grad_()
    loss, result = loss_of(leaf)
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None, "the loss looks at the vectors"
    gradients = share(leaf.grad)
    if is_whole:
        vectors[0].backward(gradients)
        return result
    after = random_state()
    for some, state, gradient in zip(chunks, states, gradients.split(chunk), strict=True):
        set_random_state(state)
        embed(some).backward(gradient)  # type: ignore[no-untyped-call]
    set_random_state(after)
    return result


def random_state() -> list[Tensor]:
    """Return where torch's random numbers are, of the CPU and of all GPUs."""
    found = [torch.get_rng_state()]
    return found + (torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])


def set_random_state(state: Sequence[Tensor]) -> None:
    """Go on with random numbers from a state."""
    torch.set_rng_state(state[0])
    if torch.cuda.is_available():  # with fewer GPUs than there were, or more
        for device, one in enumerate(state[1 : 1 + torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one, device)
