"""The test sets as folders of pictures with JSONL, to be searched through the whole mesh."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmesh.training.lite_model import features
from mmesh.training.lite_model.pictures import Picture, normalised
from mmesh.training.lite_model.sets import read_splits


def write_test_sets(directory: Path, work: Path | None = None) -> list[Path]:
    """Write `openclipart_test` and `twitter_unseen` below `directory` and return their folders.

    Each folder holds `images/`, `candidates.jsonl` with rows of `id`, `image` (a path within the
    folder) and `attributes`, and `queries.jsonl` with rows of `id`, `text` and `relevant` ids.
    The packages are fetched into `work`, by default a folder inside `directory`.
    """
    sets = read_splits(work or directory / "work")
    chosen = {"openclipart_test": sets.test, "twitter_unseen": sets.unseen}
    return [_write_set(directory / name, pictures) for name, pictures in chosen.items()]


def _write_set(folder: Path, pictures: Sequence[Picture]) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    candidates = [_candidate(folder, number, p) for number, p in enumerate(pictures)]
    _write_rows(folder / "candidates.jsonl", candidates)
    _write_rows(folder / "queries.jsonl", _queries(pictures))
    return folder


def _candidate(folder: Path, number: int, picture: Picture) -> dict[str, Any]:
    image = f"images/{number:05}.png"
    (folder / image).write_bytes(features.image_bytes(picture.path))
    attributes = {"label": picture.title, "source": picture.key}
    return {"id": _id(number), "image": image, "attributes": attributes}


def _queries(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Return one query per picture; every picture of the same name is a right answer."""
    names = [picture.concept or normalised(picture.title) for picture in pictures]
    relevant: dict[str, list[str]] = {}
    for number, name in enumerate(names):
        relevant.setdefault(name, []).append(_id(number))
    return [
        {"id": f"q{number:05}", "text": picture.title, "relevant": relevant[name]}
        for number, (picture, name) in enumerate(zip(pictures, names, strict=True))
    ]


def _id(number: int) -> str:
    return f"p{number:05}"


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), "utf-8")
