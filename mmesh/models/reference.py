"""The reference pool, a small parallel corpus: the same 128 things as texts and pictures.

Queries for which a text and a picture are as good an answer tell how far a model's scores of the
two lie apart: its modality gap (Liang et al., Mind the Gap, NeurIPS 2022, arXiv 2203.02053).
The pictures are Noto Emoji (Google, Apache-2.0), named by their English labels (Unicode CLDR);
`mmesh.training.lite_model.reference` writes them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from mmesh.content import Content, Modality, Role
from mmesh.models.probes import encode
from mmesh.models.protocol import EncoderModel, FloatMatrix
from mmesh.models.wrapped import Wrapped

ARCHIVE = Path(__file__).with_name("reference.zip")
COUNT = 128
"""With fewer the best hits are worse, those of texts most of all, and the gap looks smaller."""
ALIKE = 1e-3
"""Largest difference of two vectors that a batch of its own may make."""


@cache
def _things() -> Sequence[tuple[str, bytes]]:
    with zipfile.ZipFile(ARCHIVE) as archive:
        return [(name.removesuffix(".png"), archive.read(name)) for name in archive.namelist()]


def of_modality(modality: Modality) -> list[Content]:
    """Return the things in one modality, always in the same order."""
    if modality is Modality.TEXT:
        return [Content.of(name) for name, _ in _things()]
    if modality is Modality.IMAGE:
        return [Content.of(picture) for _, picture in _things()]
    return [Content.of(picture, name) for name, picture in _things()]


def calibrated(model: EncoderModel) -> EncoderModel:
    """Return the model with its vectors of the reference pool in `info`."""
    kinds = sorted(model.info.modalities, key=lambda modality: modality.value)
    queries = {kind: encode(model, of_modality(kind), Role.QUERY) for kind in kinds}
    candidates = {
        kind: encode(model, of_modality(kind), Role.CANDIDATE)
        for kind in kinds
        if not _is_alike(model, kind, queries[kind][:1])
    }
    info = replace(model.info, calibration=queries, calibration_candidates=candidates)
    return Wrapped(model, info)


def _is_alike(model: EncoderModel, kind: Modality, query: FloatMatrix) -> bool:
    """Tell whether the model reads queries and candidates of a modality alike, by the first."""
    candidate = encode(model, of_modality(kind)[:1], Role.CANDIDATE)
    return bool(np.allclose(query, candidate, atol=ALIKE))
