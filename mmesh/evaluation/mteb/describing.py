"""What mteb must know of a mesh: name, revision, modalities."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mteb.models.model_meta import ModelMeta, ScoringFunction


def describe(
    name: str,
    fingerprint: str,
    dim: int,
    modalities: Iterable[str] = ("text", "image"),
    experiment: Mapping[str, Any] | None = None,
    **more: Any,
) -> Any:
    """Return mteb's description of a model.

    mteb keeps results by name, revision and experiment, and does not measure again what it has: so
    the revision is the model's fingerprint, and whatever else changes figures is in `experiment`.
    """
    known = {
        "name": name,
        "revision": re.sub(r"[^\w.-]+", "-", fingerprint),
        "embed_dim": dim,
        "modalities": sorted(modalities, reverse=True),
        "similarity_fn_name": ScoringFunction.COSINE,
        "experiment_kwargs": dict(experiment or {}) or None,
    }
    return ModelMeta.create_empty(known | more)
