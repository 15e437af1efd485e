"""Vectors of texts and features of pictures, computed by the very graphs that ship."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from mmesh.errors import InvalidImage
from mmesh.models import images
from mmesh.models.encoders.lite.image import ImageTower
from mmesh.models.encoders.lite.sessions import Session
from mmesh.models.encoders.lite.text import TextTower, unit
from mmesh.models.protocol import FloatMatrix
from mmesh.training.lite_model.outputs import save_arrays
from mmesh.training.lite_model.pictures import Picture

DRAWING_SIDE = 224
TEXT_BATCH = 32
THREADS = 2
_ARRAYS = ("features", "mirrored", "logits", "whole", "whole_logits")


@dataclass(frozen=True, slots=True)
class Features:
    """What the picture model sees in `keys`, row by row."""

    keys: tuple[str, ...]
    features: FloatMatrix
    mirrored: FloatMatrix
    """Features of the mirror images."""
    logits: FloatMatrix
    whole: FloatMatrix
    """Features of the second view; those of the first where there is none."""
    whole_logits: FloatMatrix

    def rows(self, wanted: Iterable[Picture]) -> list[int]:
        """Return the rows of the pictures."""
        places = {key: row for row, key in enumerate(self.keys)}
        return [places[picture.key] for picture in wanted]


def vectors(seen: Features, rows: Sequence[int], image: ImageTower) -> FloatMatrix:
    """Return the unit vectors (n, 384) of pictures, over both views, as `LiteEncoder` does."""
    first = image.vectors(seen.features[rows], seen.logits[rows])
    second = image.vectors(seen.whole[rows], seen.whole_logits[rows])
    return unit(first + second)


def embed_texts(tower: TextTower, texts: Sequence[str]) -> FloatMatrix:
    """Return unit vectors (n, 384); texts of similar length share a batch."""
    tokens = tower.tokenise(texts)
    order = sorted(range(len(tokens)), key=lambda place: len(tokens[place].ids))
    vectors = np.empty((len(tokens), 384), np.float32)
    for start in range(0, len(order), TEXT_BATCH):
        places = order[start : start + TEXT_BATCH]
        vectors[places] = tower.embed([tokens[place] for place in places])
    return vectors


def image_bytes(path: Path) -> bytes:
    """Return the bytes of a picture file; drawings become PNG on white."""
    if path.suffix != ".svg":
        return path.read_bytes()
    import resvg_py

    drawing = resvg_py.svg_to_bytes(
        svg_path=str(path), width=DRAWING_SIDE, height=DRAWING_SIDE, background="#ffffff"
    )
    return bytes(drawing)


def read_features(pictures: Sequence[Picture], session: Session, cache: Path) -> Features:
    """Return the features of all pictures that can be decoded; kept in the file `cache`.

    Only pictures that the file lacks are computed.
    """
    old = _load(cache) if cache.is_file() else None
    known = set(old.keys) if old else set()
    new = _compute([picture for picture in pictures if picture.key not in known], session)
    parts = [part for part in (old, new) if part is not None]
    seen = _joined(parts)
    if new is not None:
        _save(cache, seen)
    return seen


def _load(cache: Path) -> Features:
    with np.load(cache) as file:
        arrays = [file[name] for name in _ARRAYS]
        return Features(tuple(file["keys"].tolist()), *arrays)


def _save(cache: Path, seen: Features) -> None:
    arrays = {name: getattr(seen, name) for name in _ARRAYS}
    save_arrays(cache, keys=np.array(seen.keys), **arrays)


def _joined(parts: Sequence[Features]) -> Features:
    arrays = [np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS]
    return Features(tuple(key for part in parts for key in part.keys), *arrays)


def _compute(pictures: Sequence[Picture], session: Session) -> Features | None:
    """Return the features of those pictures that can be decoded, None where there are none."""
    rows = []
    with ThreadPoolExecutor(THREADS) as pool:
        for number, row in enumerate(pool.map(lambda p: _row(p, session), pictures)):
            rows += [row] if row is not None else []
            if number % 2000 == 0:
                print(f"features of {number} of {len(pictures)} pictures", flush=True)
    if not rows:
        return None
    keys, *arrays = zip(*rows, strict=True)
    return Features(tuple(keys), *(np.stack(array) for array in arrays))


def _row(picture: Picture, session: Session) -> tuple[Any, ...] | None:
    """Return key and arrays in the order of the fields of `Features`."""
    try:
        image = images.decode(image_bytes(picture.path), picture.key)
    except InvalidImage as error:
        print(f"left out: {error}", flush=True)
        return None
    views = [*ImageTower.views(image), ImageTower.prepare(ImageOps.mirror(image))]
    seen = session.run({"pixels": np.stack(views)})
    features, logits = seen["features"], seen["logits"]
    second = len(views) - 2  # the whole picture, or the first view again
    return picture.key, features[0], features[-1], logits[0], features[second], logits[second]
