"""Vectors of the pools of `mixed_pool.py`, each text and picture encoded once, and what is found.

The models are `lite` and two that have half of its picture tower, with other gaps between texts and
pictures: `names` sees the classes of ImageNet only (ConSE), `head` has the trained network only.
They bring no calibration of their own, so they are measured on the built-in reference pool.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from mixed_pools import IMAGE, TEXT, Kind, Pool
from numpy.typing import NDArray

from mmesh.content import Content, Image, Modality
from mmesh.models import images, reference
from mmesh.models.encoders.lite import artefacts
from mmesh.models.encoders.lite.image import CLASS_SHARE, Head, class_vectors
from mmesh.models.encoders.lite.model import LiteEncoder, load_lite
from mmesh.models.encoders.lite.text import unit
from mmesh.models.protocol import FloatMatrix
from mmesh.training.lite_model.features import embed_texts, image_bytes
from services.gateway.interfaces import ReferenceRows
from services.gateway.search.calibration import Calibration, fit

SHARES = {"lite": CLASS_SHARE, "names": 1.0, "head": 0.0}
"""How much of a picture's vector is from the classes of ImageNet, by model."""
DEPTH = 10
BATCH = 32
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the picture tower says of pictures, view by view."""

    counts: NDArray[np.int64]
    features: FloatMatrix
    logits: FloatMatrix


@dataclass(frozen=True, slots=True)
class List:
    """The first hits of each query in one modality: scores (n, k), places, and which are right."""

    scores: Scores
    places: NDArray[np.int64]
    right: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Found:
    """The lists of one kind of queries."""

    seeks: Modality
    lists: Mapping[Modality, List]


class Vectors:
    """Encodes what the pools hold, and keeps it in a file."""

    def __init__(self, pools: Sequence[Pool], cache: Path, threads: int) -> None:
        self._lite = load_lite(threads=threads)
        self._head = Head.load(artefacts.DATA / artefacts.HEAD)
        contents = list(dict.fromkeys(_contents(pools)))
        texts = [one for one in contents if isinstance(one, str)]
        paths = [one for one in contents if isinstance(one, Path)]
        named = "\n".join([self._lite.info.fingerprint, *texts, *map(str, paths)])
        digest = hashlib.sha256(named.encode()).hexdigest()[:16]
        self.texts = _kept(
            cache / f"texts-{digest}.npy", lambda: embed_texts(self._lite.text, texts)
        )
        self._rows = {text: row for row, text in enumerate(texts)}
        self._pictures = {path: row for row, path in enumerate(paths)}
        self._seen = self._look(cache / f"pictures-{digest}.npz", paths, threads)
        self._by_model = {
            model: self._vectors(self._seen, share) for model, share in SHARES.items()
        }
        self._shown = _see(self._lite, _bytes(reference.of_modality(IMAGE)), threads)
        self._calibrations: dict[tuple[str, Modality], Calibration] = {}
        for model in SHARES:
            self._calibrations |= self._fitted(model)

    @property
    def count(self) -> tuple[int, int]:
        """Texts and pictures that were encoded."""
        return len(self._rows), len(self._pictures)

    def of(self, contents: Sequence[str | Path], model: str) -> FloatMatrix:
        """Return unit rows (n, 384)."""
        shown = self._by_model[model]
        return np.stack(
            [
                shown[self._pictures[one]] if isinstance(one, Path) else self.texts[self._rows[one]]
                for one in contents
            ]
        )

    def calibration(self, model: str, query: Modality) -> Calibration:
        """Return what the gateway merges lists by."""
        return self._calibrations[model, query]

    def search(self, pool: Pool, kind: Kind) -> Found:
        """Return the exact lists of all queries."""
        queries = self.of(kind.queries, pool.model)
        lists = {}
        for modality, contents in pool.candidates.items():
            scores, places = _nearest(queries, self.of(contents, pool.model))
            wanted = kind.relevant if modality is kind.seeks else [frozenset()] * len(queries)
            right = np.array(
                [
                    [place in relevant for place in row]
                    for row, relevant in zip(places.tolist(), wanted, strict=True)
                ]
            )
            lists[modality] = List(scores, places, right)
        return Found(kind.seeks, lists)

    def tails(self, pool: Pool) -> dict[Modality, Scores]:
        """Return the first ten scores of lite's own queries, none of which is in the pool."""
        queries = self._lite.info.calibration[pool.query]
        found = {
            modality: _nearest(queries, self.of(contents, pool.model))[0]
            for modality, contents in pool.candidates.items()
        }
        foreign = np.all([scores[:, 0] <= 0.98 for scores in found.values()], axis=0)
        return {modality: scores[foreign] for modality, scores in found.items()}

    def _look(self, path: Path, pictures: Sequence[Path], threads: int) -> Seen:
        if not path.is_file():
            seen = _see(self._lite, map(image_bytes, pictures), threads)
            np.savez(path, counts=seen.counts, features=seen.features, logits=seen.logits)
        with np.load(path) as file:
            return Seen(file["counts"], file["features"], file["logits"])

    def _vectors(self, seen: Seen, share: float) -> FloatMatrix:
        by_class = class_vectors(seen.logits, self._lite.image.class_names)
        mixed = unit(
            np.float32(share) * by_class + np.float32(1 - share) * self._head(seen.features)
        )
        starts = np.cumsum([0, *seen.counts[:-1]])
        return unit(np.add.reduceat(mixed, starts, axis=0))

    def _fitted(self, model: str) -> dict[tuple[str, Modality], Calibration]:
        reference_pool = self._reference(model)
        fitted = {(model, query): fit(reference_pool, query, model) for query in (TEXT, IMAGE)}
        return {key: one for key, one in fitted.items() if one is not None}

    def _reference(self, model: str) -> dict[Modality, ReferenceRows]:
        if model == "lite":
            brought = self._lite.info.calibration
            return {kind: ReferenceRows.of(rows) for kind, rows in brought.items()}
        texts = embed_texts(self._lite.text, [one.text for one in reference.of_modality(TEXT)])
        pictures = self._vectors(self._shown, SHARES[model])
        return {TEXT: ReferenceRows.of(texts), IMAGE: ReferenceRows.of(pictures)}


def _contents(pools: Sequence[Pool]) -> Iterator[str | Path]:
    for pool in pools:
        for contents in pool.candidates.values():
            yield from contents
        for kind in pool.kinds:
            yield from kind.queries


def _kept(path: Path, make: Callable[[], FloatMatrix]) -> FloatMatrix:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, make())
    rows: FloatMatrix = np.load(path)
    return rows


def _bytes(contents: Sequence[Content]) -> Iterator[bytes]:
    for content in contents:
        yield from (part.data for part in content.parts if isinstance(part, Image))


def _see(lite: LiteEncoder, pictures: Iterable[bytes], threads: int) -> Seen:
    def views_of(data: bytes) -> NDArray[np.float32]:
        return lite.image.views(images.decode(data, "picture"))

    counts: list[int] = []
    features, logits = [], []
    with ThreadPoolExecutor(threads) as pool:
        for batch in _batches(pictures):
            views = list(pool.map(views_of, batch))
            counts += map(len, views)
            one, other = lite.image.features(np.concatenate(views))
            features.append(one)
            logits.append(other)
    return Seen(np.array(counts), np.concatenate(features), np.concatenate(logits))


def _batches(pictures: Iterable[bytes]) -> Iterator[list[bytes]]:
    rest = iter(pictures)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _nearest(queries: FloatMatrix, candidates: FloatMatrix) -> tuple[Scores, NDArray[np.int64]]:
    scores = queries @ candidates.T
    places = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    return np.take_along_axis(scores, places, 1).astype(np.float64), places
