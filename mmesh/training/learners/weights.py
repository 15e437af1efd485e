"""New weights into a copy of a model's folder; all that did not train keeps its bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmesh.training.errors import TrainingError

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
Place = tuple[Path, int, Mapping[str, Any]]
"""Where a tensor is: the file, where its data begin, and its entry in the header."""


def copy_folder(base: Path, folder: Path) -> None:
    """Copy a model's files, without what is hidden.

    Raises:
        OSError: a file cannot be copied.
    """
    shutil.copytree(
        base,
        folder,
        ignore=shutil.ignore_patterns(".*"),
        copy_function=shutil.copyfile,  # without its mode: what was read-only is written to
        dirs_exist_ok=True,
    )


def patch_weights(folder: Path, changed: Iterable[tuple[str, Tensor]]) -> None:
    """Write tensors over those of the same name and shape in a folder's safetensors files.

    Names need not be whole: libraries put `model.` and the like before those in the files, or
    leave it out. A name must fit one tensor only.

    Raises:
        TrainingError: a tensor fits none, or several.
        OSError: a file cannot be written.
    """
    places = _places(folder)
    for name, tensor in changed:
        path, start, entry = _place(places, name, tensor)
        begin, end = entry["data_offsets"]
        values = tensor.to("cpu", _TYPES[entry["dtype"]]).contiguous()
        data = (
            values.view(torch.uint8).numpy()
            if values.ndim
            else values[None].view(torch.uint8).numpy()
        )
        if data.nbytes != end - begin:
            raise TrainingError(f"{name} has {data.nbytes} bytes, and {end - begin} in {path}")
        with path.open("r+b") as file:
            file.seek(start + begin)
            file.write(np.ascontiguousarray(data).tobytes())


def _places(folder: Path) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                found[name] = path, 8 + length, entry
    return found


def _place(places: Mapping[str, Place], name: str, tensor: Tensor) -> Place:
    if name in places:
        return places[name]
    fitting = [
        one
        for one, (_, _, entry) in places.items()
        if (f".{one}".endswith(f".{name}") or f".{name}".endswith(f".{one}"))
        and tuple(entry["shape"]) == tuple(tensor.shape)
    ]
    longest = max(map(len, fitting), default=0)
    fitting = [one for one in fitting if len(one) == longest or len(one) >= len(name)]
    if len(fitting) != 1:
        raise TrainingError(f"{name} fits {len(fitting)} tensors of the model's files: {fitting}")
    return places[fitting[0]]
