"""Parity cache: a note that a model passed its canary, valid until anything that decides changes.

What decides is the model, how it is opened, our code, the libraries that run it, and the processor.
A note is believed only where nobody else could have written it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import platform
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mmesh.errors import FailedPrecondition

logger = logging.getLogger(__name__)

LIBRARIES = (
    "mmesh", "numpy", "onnxruntime", "openvino", "pillow", "sentence-transformers", "tokenizers",
    "torch", "torchvision", "transformers",
)  # fmt: skip
CODE = Path(__file__).parent
"""Our own code, which may change between two versions."""
VARIABLES = ("ATEN_", "DNNL_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_", "ORT_", "TORCH_")
"""Beginnings of the names of variables by which libraries choose their kernels."""


@dataclass(frozen=True, slots=True)
class Passed:
    """The probe whose answers differed most, and by how much."""

    probe: str
    largest: float


class ParityCache:
    """Notes of one subject: whatever its caller knows of the model, in values of JSON."""

    def __init__(self, folder: Path, subject: Mapping[str, object]) -> None:
        decisive = json.dumps([subject, surroundings()], sort_keys=True, default=str)
        self._key = hashlib.sha256(decisive.encode()).hexdigest()
        self._path = folder / f"{self._key[:32]}.json"

    def read(self) -> Passed | None:
        """Return the note; None when there is none, or none that can be believed."""
        try:
            note = json.loads(_read_own(self._path))
            passed = Passed(str(note["probe"]), float(note["largest"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as problem:
            logger.warning("note of parity ignored", extra={"problem": str(problem)})
            return None
        is_ours = note.get("key") == self._key and math.isfinite(passed.largest)
        return passed if is_ours else None

    def write(self, passed: Passed) -> None:
        """Make the note; when it cannot be written, the next start measures again."""
        note = {"key": self._key, "probe": passed.probe, "largest": passed.largest}
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False) as file:
                json.dump(note, file)
            os.replace(file.name, self._path)
        except OSError as problem:
            logger.warning("note of parity not written", extra={"problem": str(problem)})


def digest_of(stored: Path | None) -> str:
    """Return the SHA-256 of a file of stored answers, "" for none.

    Raises:
        FailedPrecondition: it cannot be read.
    """
    try:
        return hashlib.sha256(stored.read_bytes()).hexdigest() if stored else ""
    except OSError as error:
        raise FailedPrecondition(f"{stored} cannot be read: {error.strerror or error}") from None


def _read_own(path: Path) -> str:
    """Return the text of a file that only this user can have written.

    Raises:
        PermissionError: others can write to it, or to its folder.
    """
    with open(path, encoding="utf-8", opener=_open_no_link) as file:
        for found in (os.fstat(file.fileno()), path.parent.stat()):
            if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise PermissionError(f"others may write to {path} or its folder")
        return file.read()


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def surroundings() -> dict[str, object]:
    """Return what decides besides the model itself."""
    return {
        "python": platform.python_version(),
        "libraries": dict(_versions()),
        "code": _digest_of_code(CODE),
        "processor": _processor(),
        "accelerators": _accelerators(),
        "variables": {n: v for n, v in os.environ.items() if n.startswith(VARIABLES)},
    }


def _versions() -> Iterator[tuple[str, str]]:
    for library in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            yield library, version(library)


def _digest_of_code(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _processor() -> list[str]:
    """Return architecture, cores, and the model and features that Linux tells."""
    told = [platform.machine(), str(os.cpu_count())]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        names = ("model name", "flags", "Features", "CPU part")
        told += [line for line in lines if line.startswith(names)]
    return told


def _accelerators() -> list[str]:
    """Return the GPUs that torch sees, where a model has loaded it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    count = range(torch.cuda.device_count())
    return [f"CUDA {torch.version.cuda}", *map(torch.cuda.get_device_name, count)]
