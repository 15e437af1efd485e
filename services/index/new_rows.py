"""Candidates with their vectors become new rows of the log."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from mmesh.candidates import Candidate
from mmesh.content import Content, Modality
from mmesh.errors import DimMismatch, InvalidField, ModelMismatch
from mmesh.vectors import FloatMatrix, pack, unit_rows
from services.index.log.rows import (
    CollectionRow,
    NewCandidate,
    attributes_to_json,
    parts_to_json,
)
from services.index.slots import slot_of
from services.index.store.blobs import ContentBlobs
from services.index.store.together import together


def new_rows(
    candidates: Sequence[Candidate],
    vectors: FloatMatrix,
    blobs: ContentBlobs,
    pool: ThreadPoolExecutor,
) -> list[NewCandidate]:
    """Return a row for each candidate; pictures are stored, and on disk, before it names them."""
    unit = unit_rows(vectors)
    contents = [candidate.content for candidate in candidates]
    parts = together(pool, partial(parts_to_json, blobs=blobs), contents, _has_picture)
    return [_new_row(*row) for row in zip(candidates, parts, unit, strict=True)]


def _has_picture(content: Content) -> bool:
    return content.modality is not Modality.TEXT


def _new_row(candidate: Candidate, parts: str, vector: FloatMatrix) -> NewCandidate:
    return NewCandidate(
        candidate.id,
        slot_of(candidate.id),
        candidate.content.modality,
        attributes_to_json(candidate.attributes),
        parts,
        pack(vector),
    )


def mirror_rows(rows: Sequence[NewCandidate], vectors: FloatMatrix) -> list[NewCandidate]:
    """Return the rows with the vectors of another model, without those that have none."""
    held = np.flatnonzero(vectors.any(axis=1))
    unit = unit_rows(vectors[held], "mirror_vectors")
    return [replace(rows[n], vector=pack(v)) for n, v in zip(held.tolist(), unit, strict=True)]


def check_count(path: str, vectors: FloatMatrix, candidates: Sequence[Candidate]) -> None:
    """Raise `InvalidField` unless there is a vector for each candidate."""
    if len(vectors) != len(candidates):
        raise InvalidField(path, f"has {len(vectors)} rows for {len(candidates)} candidates")


def check_model(row: CollectionRow, dim: int, model_fingerprint: str | None) -> None:
    """Raise `DimMismatch` or `ModelMismatch` unless vectors, of any model if None, fit."""
    if dim != row.dim:
        raise DimMismatch(
            f"vectors are {dim} wide; collection {row.name!r} has {row.dim}",
            {"collection": row.name, "dim": str(row.dim)},
        )
    if model_fingerprint not in (None, row.model_fingerprint):
        raise ModelMismatch(
            f"vectors are of model {model_fingerprint!r}; collection {row.name!r} is for "
            f"{row.model_fingerprint!r}. Ingest into a new collection, or serve that model",
            {"collection": row.name, "model_fingerprint": row.model_fingerprint},
        )
