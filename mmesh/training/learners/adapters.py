"""Low-rank adapters: put into a network by peft, and merged into its weights at the end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from mmesh.models.compat import declare_torchvision_operators
from mmesh.training.errors import TrainingError, not_importable
from mmesh.training.learners.learner import Adapting

_NAME = "default"


def add_adapters(network: Any, pattern: str, adapting: Adapting) -> None:
    """Freeze a network and give adapters to the linear layers whose name matches.

    Raises:
        TrainingError: peft is not installed or does not load, or no layer matches.
    """
    declare_torchvision_operators()  # transformers, which peft imports, may need them
    try:
        import peft
    except ImportError as error:
        raise not_importable(error) from None
    network.requires_grad_(False)
    chosen = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and re.search(pattern, name)
    ]
    if not chosen:
        raise TrainingError(f"no linear layer of the model is called like {pattern!r}")
    config = peft.LoraConfig(
        r=adapting.rank,
        lora_alpha=adapting.alpha,
        lora_dropout=adapting.dropout,
        target_modules=chosen,
    )
    peft.inject_adapter_in_model(config, network, adapter_name=_NAME)
    for name, parameter in network.named_parameters():
        if ".lora_" in name:  # a network in bfloat16 would lose what a step changes
            parameter.data = parameter.data.float()


def trained(network: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters that trained, by their names without adapters, the latter merged."""
    for name, module in network.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_delta_weight"):
            base = module.get_base_layer().weight
            delta = module.get_delta_weight(_NAME)
            yield f"{_plain(name)}.weight", (base.float() + delta.float()).detach()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and ".lora_" not in name:
            yield _plain(name), parameter.detach()


def _plain(name: str) -> str:
    return name.replace(".base_layer", "")


def count_parameters(network: Any) -> tuple[int, int]:
    """Return how many numbers train, and how many there are."""
    sizes = [(one.numel(), one.requires_grad) for one in network.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
