"""Where and how torch families run: device, element type, threads, and what running out means.

A GPU works through a queue of kernels (its stream). Whoever waits for one pass before launching the
next leaves it idle meanwhile, so passes are launched by one thread after the other, and each waits
for its own rows only.
"""

from __future__ import annotations

import logging
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from mmesh.errors import DataLoss, FailedPrecondition, InternalError
from mmesh.models.cuda_graphs import FLASH_DTYPES, Slots, each_tensor
from mmesh.models.protocol import FloatMatrix, OutOfDeviceMemory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SWITCH_S = 0.0005
"""How long a thread may keep the interpreter from others: each launch gives it up for a moment, and
a pass is a thousand launches beside threads that prepare the next inputs."""
logger = logging.getLogger(__name__)
Inputs = TypeVar("Inputs")
Compiling = Literal["auto", "on", "off"]


class Runtime:
    """Runs networks on one device; thread-safe.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, bfloat16 elsewhere.
        threads: of one forward pass on a CPU; set for the whole process.
        compiling: `on` lets torch.compile rewrite the layers, and the first passes then take a
            minute or so; `auto` does so on a GPU with what Triton needs, for packed families.

    Raises:
        FailedPrecondition: torch does not know the device or element type, or finds no such device.
    """

    def __init__(
        self,
        device: str = "cpu",
        dtype: str = "auto",
        threads: int = 1,
        *,
        compiling: Compiling = "auto",
    ) -> None:
        self.device = _device(device)
        self.dtype = _dtype(dtype, self.device)
        self._compiles_layers = compiling == "on"
        self._fuses = compiling == "on" or (compiling == "auto" and self._can_compile())
        self._launching = threading.Lock()
        self.records = True
        """Whether short passes are recorded to be replayed, which a trainer cannot use."""
        torch.set_num_threads(threads)
        if self.is_cuda:
            _forbid_split_sums(self.device)
            sys.setswitchinterval(SWITCH_S)

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a GPU, which works while we prepare."""
        return bool(self.device.type == "cuda")

    @property
    def passes(self) -> int:
        """How many forward passes may be under way: on a GPU one runs and the next is launched."""
        return 2 if self.is_cuda else 1

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
        if self._compiles_layers:
            _compile_layers(network)
        return network

    def fused(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of a module and rows, compiled for any number of rows if wanted.

        The first call compiles. It is told which size varies: torch takes sizes that happen to be
        equal for one and the same, and would compile again, with other rounding, when they differ.
        """
        if not self._fuses:
            return function
        compiled: Callable[..., Any] = torch.compile(function)
        is_compiled = False

        def called(module: Any, *rows: Any) -> Any:
            nonlocal is_compiled
            if not is_compiled:
                each_tensor(rows, lambda row: torch._dynamo.maybe_mark_dynamic(row, 0) or row)
            found = compiled(module, *rows)
            is_compiled = True
            return found

        return called

    def _can_compile(self) -> bool:
        """Tell whether this is a GPU that Triton compiles for, with the C compiler it calls."""
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        return self.is_cuda and compiler is not None and find_spec("triton") is not None

    def slots(self, lengths: Sequence[int]) -> Slots | None:
        """Return what to pad sequences of these lengths to; None where they are launched as is."""
        recorded = self.records and self.is_cuda and self.dtype in FLASH_DTYPES
        return Slots.around(lengths) if recorded else None

    def staged(self, inputs: Inputs) -> Inputs:
        """Return tensors, or a mapping or dataclass of them, in memory that a GPU copies from."""
        return each_tensor(inputs, torch.Tensor.pin_memory) if self.is_cuda else inputs

    def moved(self, inputs: Inputs) -> Inputs:
        """Return tensors, or a mapping or dataclass of them, on the device; types stay."""
        moved: Inputs = each_tensor(
            inputs, lambda tensor: tensor.to(self.device, non_blocking=True)
        )
        return moved

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Launch a pass without gradients in the block, which one thread at a time enters.

        Raises:
            OutOfDeviceMemory: the device has no room; what the block held there is freed.
        """
        try:
            with self._launching, torch.inference_mode(), self._on_device():
                yield
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            # The frames that failed would keep their tensors for as long as the error lives.
            traceback.clear_frames(error.__traceback__)
            if self.is_cuda:
                torch.cuda.empty_cache()
            raise OutOfDeviceMemory(str(error)) from None

    def _on_device(self) -> AbstractContextManager[Any]:
        """Make the device the current one of this thread: streams and events are of that."""
        return torch.cuda.device(self.device) if self.is_cuda else nullcontext()

    def unit_rows(self, forward: Callable[[Inputs], torch.Tensor], inputs: Inputs) -> FloatMatrix:
        """Return what `forward` makes of inputs on the device, as rows (n, dim) of unit length.

        Raises:
            InternalError: a row is not finite or has no length.
            OutOfDeviceMemory: as `forward_pass`.
        """
        with self.forward_pass():
            rows = forward(self.moved(inputs)).float()
            if not self.is_cuda:
                return unit(rows.numpy())
            host = torch.empty(rows.shape, pin_memory=True)
            host.copy_(rows, non_blocking=True)
            done = torch.cuda.Event(blocking=True)
            done.record()
        done.synchronize()
        return unit(host.numpy())


def unit(rows: FloatMatrix) -> FloatMatrix:
    """Return the rows (n, dim) at unit length; on the CPU, which sums each row alike.

    Raises:
        InternalError: a row is not finite or has no length.
    """
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise InternalError("the model's vector is not finite or has no length; try float32")
    scaled: FloatMatrix = rows / lengths
    return scaled


def _forbid_split_sums(device: torch.device) -> None:
    """Let no matrix product cut its sums in pieces (split-K), as it would for few rows only.

    Rounding would then depend on how many rows a batch has, and so would vectors. Where torch
    cannot be told so, it does as it likes.
    """
    products, row = torch.backends.cuda.matmul, torch.ones(1, 64, device=device, dtype=torch.half)
    before = torch.backends.cuda.preferred_blas_library()
    try:
        torch.backends.cuda.preferred_blas_library("cublaslt")  # the only one that can be told
        products.allow_bf16_reduced_precision_reduction = (False, False)
        products.allow_fp16_reduced_precision_reduction = (False, False)
        row @ row.T
    except (RuntimeError, TypeError, AttributeError) as error:
        products.allow_bf16_reduced_precision_reduction = True
        products.allow_fp16_reduced_precision_reduction = True
        torch.backends.cuda.preferred_blas_library(before)
        logger.warning("sums of matrix products may be split", extra={"reason": str(error)})


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
