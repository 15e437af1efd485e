"""Where and how torch families run: device, element type, threads, and what running out means."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmesh.errors import DataLoss, FailedPrecondition, InternalError
from mmesh.models.protocol import FloatMatrix, OutOfDeviceMemory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Runtime:
    """Runs networks on one device; `forward_pass` is for the device thread.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, bfloat16 elsewhere.
        threads: of one forward pass on a CPU; set for the whole process.
        compile_network: let torch.compile rewrite the layers; the first passes then take minutes.

    Raises:
        FailedPrecondition: torch does not know the device or element type, or finds no such device.
    """

    def __init__(
        self,
        device: str = "cpu",
        dtype: str = "auto",
        threads: int = 1,
        *,
        compile_network: bool = False,
    ) -> None:
        self.device = _device(device)
        self.dtype = _dtype(dtype, self.device)
        self._compile = compile_network
        torch.set_num_threads(threads)

    @property
    def dtype_name(self) -> str:
        """The element type as settings write it, which is part of fingerprints."""
        return str(self.dtype).removeprefix("torch.")

    def read(self, architecture: Any, folder: Path, **options: Any) -> Any:
        """Return a transformers model from the folder's safetensors; it is not placed yet.

        Raises:
            FailedPrecondition: the folder lacks some of the weights, or they have another shape.
            DataLoss: a file of weights is damaged.
        """
        from safetensors import SafetensorError

        fixed = {"dtype": self.dtype, "local_files_only": True, "use_safetensors": True}
        try:
            network, found = architecture.from_pretrained(
                folder, output_loading_info=True, **fixed, **options
            )
        except SafetensorError as error:
            raise DataLoss(f"{folder} holds damaged weights: {error}") from error
        absent = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
        if absent:
            raise FailedPrecondition(f"{folder} lacks {len(absent)} weights, such as {absent[0]}")
        return network

    def placed(self, network: Any) -> Any:
        """Return the network on the device, its parameters in the element type, for inference.

        Buffers keep theirs: the frequencies of RoPE, for one, are wrong in bfloat16.
        """
        network = network.to(self.device).eval().requires_grad_(False)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(self.dtype)
        if self._compile:
            _compile_layers(network)
        return network

    def moved(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the tensors on the device; their element types stay."""
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Compute without gradients in the block.

        Raises:
            OutOfDeviceMemory: the device has no room; what the block held there is freed.
        """
        try:
            with torch.inference_mode():
                yield
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            # The frames that failed would keep their tensors for as long as the error lives.
            traceback.clear_frames(error.__traceback__)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfDeviceMemory(str(error)) from None


def unit(rows: torch.Tensor) -> FloatMatrix:
    """Return the rows (n, dim) at unit length, computed in float32, as an array.

    Raises:
        InternalError: a row is not finite or has no length.
    """
    wide = rows.detach().float()
    array: FloatMatrix = (wide / wide.norm(dim=-1, keepdim=True)).cpu().numpy()
    if not np.isfinite(array).all():
        raise InternalError("the model's vector is not finite or has no length; try float32")
    return array


def _compile_layers(network: torch.nn.Module) -> None:
    """Compile the repeated layers only: they are the work, and one of each kind is compiled."""
    for module in network.modules():
        if isinstance(module, torch.nn.ModuleList):
            for layer in module:
                layer.compile(dynamic=True)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise FailedPrecondition(f"torch knows no device {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise FailedPrecondition(
            f"there is no device {name!r}; torch {torch.__version__} finds "
            f"{torch.cuda.device_count()} CUDA devices"
        )
    if device.type not in ("cpu", "cuda"):
        raise FailedPrecondition(f"device {name!r} is not supported; use cpu, cuda or cuda:N")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise FailedPrecondition(f"dtype {name!r} is unknown; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Tell so from what torch raises: an own class for CUDA, a bare RuntimeError for CPUs."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
