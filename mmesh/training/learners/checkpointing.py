"""Gradient checkpointing (arXiv 1604.06174): layers keep their input, and are computed again."""

from __future__ import annotations

from typing import Any

from mmesh.training.errors import TrainingError


def checkpoint_layers(network: Any) -> None:
    """Let the layers of all models of transformers in a network keep nothing but their input.

    The way back computes each layer once more: a third more work, for the memory of one layer.

    Raises:
        TrainingError: one of the models has no such layers.
    """
    from transformers import PreTrainedModel

    for module in network.modules():
        if isinstance(module, PreTrainedModel):
            try:
                module.gradient_checkpointing_enable({"use_reentrant": False})
            except ValueError as error:
                raise TrainingError(f"gradient_checkpointing: {error}") from None
