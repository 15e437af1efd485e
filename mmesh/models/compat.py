"""Makes the published torchvision importable next to a CPU build of torch.

The torchvision wheel on the public index is a CUDA build. Its library cannot load without CUDA, so
its two registered operators are unknown and `import torchvision` fails, although its Python part,
which is all that image processors use, works. vLLM calls `declare_torchvision_operators` at the
start of each of its processes, as an entry point of the group `vllm.platform_plugins`; processes
that import transformers before vLLM call it themselves.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from mmesh.errors import FailedPrecondition

ENTRY_POINT = "mmesh_torchvision"
_registration: Any = None  # the declarations end when this object does


def declare_torchvision_operators() -> None:
    """Declare `nms` and `qnms`, without an implementation, where torchvision's own cannot load.

    Does nothing with a CUDA build of torch, with a CPU build of torchvision, and when called
    again. Returns None, which tells vLLM that this plugin brings no platform.
    """
    global _registration
    if _registration is not None or not declaration_needed():
        return
    import torch

    registration = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        registration.define(
            f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    _registration = registration


def declaration_needed() -> bool:
    """Tell whether torch is a CPU build while torchvision is a CUDA build."""
    import torch

    try:
        torchvision = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return False
    return torch.version.cuda is None and "+cpu" not in torchvision


def check_plugin() -> None:
    """Raise `FailedPrecondition` if vLLM's processes need the declaration but would not find it."""
    plugins = metadata.entry_points(group="vllm.platform_plugins")
    if declaration_needed() and ENTRY_POINT not in plugins.names:
        raise FailedPrecondition(
            "mmesh is not installed, so vLLM cannot find its plugin; run `pip install -e .`"
        )
