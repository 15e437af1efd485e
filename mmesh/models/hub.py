"""Where a model's files are: a folder, or `hf:ORG/NAME[@REVISION]` of the Hugging Face hub.

Weights come from safetensors files only, as the other formats run code when they are read.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmesh.errors import FailedPrecondition

HUB = "hf:"
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
_ADAPTER = "adapter_config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def local_folder(model: str, *, with_code: bool = False) -> Path:
    """Return the folder with the model's files, fetching those of the hub that are missing.

    Python files are fetched only `with_code`. Without a network, or with `HF_HUB_OFFLINE=1`, the
    hub's cache on this machine is used. The folder of a hub model is that of one commit, so its
    files do not change.

    Raises:
        FailedPrecondition: there is no such model, it has no safetensors weights, or only those of
            an adapter.
    """
    folder = _folder(model, _patterns(with_code))
    _check_weights(folder)
    _check_no_adapter(folder)
    return folder


def tokenizer_folder(model: str) -> Path:
    """Return the folder with the model's configs, tokenizer and chat template, as `local_folder`.

    Weights are not fetched.

    Raises:
        FailedPrecondition: there is no such model.
    """
    return _folder(model, [pattern for pattern in _FILES if pattern != "*.safetensors"])


def check_no_code(folder: Path) -> None:
    """Refuse a model that asks its library to import a module that comes with it.

    Only families that leave the choice of classes to the model need this.

    Raises:
        FailedPrecondition: a config of the model names such a module, or is not a JSON object.
    """
    for path in sorted(folder.rglob("*config.json")):
        if "auto_map" in _json_object(path):
            raise FailedPrecondition(
                f"{path} brings code of its own; read it, then allow it with --trust-remote-code"
            )


def display_name(model: str, folder: Path) -> str:
    """Return what to call the model: `ORG/NAME@COMMIT` for the hub's, else the folder's name."""
    if not model.startswith(HUB):
        return folder.resolve().name
    repository, _ = _parsed(model)
    return f"{repository}@{folder.name[:12]}"


def read_config(folder: Path) -> dict[str, Any]:
    """Return `config.json`; empty if the folder has none.

    Raises:
        FailedPrecondition: the file is not a JSON object.
    """
    path = folder / "config.json"
    return _json_object(path) if path.is_file() else {}


def fingerprint_of(
    folder: Path, name: str, parts: Sequence[object], *, with_code: bool = False
) -> str:
    """Return `name` with a hash that changes with any file or part that a vector depends on.

    The files are those that are fetched from the hub, by path and content, with Python files where
    the model's own code is run; where the folder lies does not matter. `parts` are the revision of
    the family's code, the element type and the like.
    """
    sha = hashlib.sha256("\0".join(map(str, parts)).encode())
    for path in _relevant(folder, _patterns(with_code)):
        status = path.stat()
        digest = _file_sha256(path, status.st_mtime_ns, status.st_size)
        sha.update(f"\0{path.relative_to(folder).as_posix()}\0{digest}".encode())
    return f"{name}-{sha.hexdigest()[:16]}"


def _patterns(with_code: bool) -> list[str]:
    return [*_FILES, "*.py"] if with_code else [*_FILES]


def _parsed(model: str) -> tuple[str, str | None]:
    repository, _, revision = model.removeprefix(HUB).partition("@")
    if repository.count("/") != 1:
        raise FailedPrecondition(f"{model!r} names no model; write hf:ORG/NAME[@REVISION]")
    return repository, revision or None


def _folder(model: str, patterns: Sequence[str]) -> Path:
    folder = _snapshot(model, patterns) if model.startswith(HUB) else Path(model)
    if not folder.is_dir():
        raise FailedPrecondition(f"there is no folder {model!r}; give one, or hf:ORG/NAME")
    return folder


def _snapshot(model: str, patterns: Sequence[str]) -> Path:
    """Return the hub's folder of one commit, named by it."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FailedPrecondition(
            "models of the hub need huggingface_hub; run `make setup-models`"
        ) from error
    repository, revision = _parsed(model)
    try:
        found = snapshot_download(repository, revision=revision, allow_patterns=patterns)
    except Exception as error:  # some are those of the client's own HTTP library
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise FailedPrecondition(f"{model} cannot be fetched: {reason}") from error
    return Path(found)


def _check_weights(folder: Path) -> None:
    if any(folder.rglob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.rglob(pattern))
    found = f"only {pickles[0]}, which would run code when read" if pickles else "none"
    raise FailedPrecondition(f"{folder} must hold weights as safetensors; it has {found}")


def _check_no_adapter(folder: Path) -> None:
    """Refuse what libraries would complete by a model of another place, of whatever version."""
    for path in sorted([*folder.glob(_ADAPTER), *folder.glob(f"*/{_ADAPTER}")]):
        beside = [
            one.name for place in (folder, path.parent) for one in place.glob("*.safetensors")
        ]
        if all(name.startswith("adapter") for name in beside):
            base = _json_object(path).get("base_model_name_or_path") or "a model it does not name"
            raise FailedPrecondition(
                f"{folder} holds an adapter of {base}, not a whole model; merge it into that first"
            )


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise FailedPrecondition(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise FailedPrecondition(f"{path} holds no JSON object")
    return found


def _relevant(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    """Yield the files that match a pattern, in order, without hidden ones."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if not hidden and any(inside.match(pattern) for pattern in patterns) and path.is_file():
            yield path


@functools.lru_cache(maxsize=4096)
def _file_sha256(path: Path, mtime_ns: int, size: int) -> str:
    """Hash a file, once for as long as its time and size stay."""
    del mtime_ns, size
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
