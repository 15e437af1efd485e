"""Rebuild `lite` and compare it with the committed files: `python -m mmesh.training.lite_model`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mmesh.models.encoders.lite import artefacts
from mmesh.training.lite_model import card
from mmesh.training.lite_model.build import build


def main(arguments: Sequence[str] | None = None) -> int:
    """Build into `--out` and return 0, or 1 where recall fell against the committed manifest."""
    options = _parser().parse_args(arguments)
    if options.settings:
        build(options.out, options.work, with_dev=False)
        return 0
    committed = artefacts.DATA / artefacts.MANIFEST
    old = artefacts.read_manifest() if committed.is_file() else None
    built = build(options.out, options.work)
    card.write(options.out, built)
    print(f"wrote {options.out}")
    if old is None:
        return 0
    return compare(old, artefacts.read_manifest(options.out))


def compare(old: dict[str, object], new: dict[str, object]) -> int:
    """Print how two builds differ and return the exit status."""
    for line in card.differences(old, new):
        print(f"differs: {line}")
    fallen = card.losses(old, new)
    for line in fallen:
        print(line)
    if fallen:
        print("recall fell: do not commit this build")
        return 1
    equal = old["files"] == new["files"]
    print("identical to the committed build" if equal else "only bits differ: recall is kept")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mmesh.training.lite_model", description=__doc__
    )
    scratch = Path(tempfile.gettempdir()) / "mmesh-lite-model"
    parser.add_argument("--out", type=Path, default=scratch / "data", help="where to write")
    parser.add_argument("--work", type=Path, default=scratch / "work", help="kept between runs")
    parser.add_argument(
        "--settings", action="store_true", help="leave dev out of training and only measure it"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
