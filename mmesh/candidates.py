"""Candidates: what is stored and found, and what an ingest and a listing say of them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmesh.content import (
    Attributes,
    AttributeValue,
    Content,
    check_content,
    check_id,
)
from mmesh.errors import InvalidField, InvalidVector, MmeshError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmesh.vectors import FloatMatrix

MAX_ATTRIBUTES = 64
MAX_STRING_BYTES = 4096
MAX_LIST = 256
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A thing that can be found."""

    id: str
    content: Content
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """A candidate with a vector that the model of its collection made of it elsewhere."""

    candidate: Candidate
    vector: NDArray[Any]
    """(dim,) numbers of any length but zero; int8 stands for value / 127."""


def check_candidate(candidate: Candidate, path: str) -> None:
    """Raise `InvalidField`, naming the part under `path`, unless all of it is within the limits."""
    check_id(candidate.id, f"{path}.id")
    check_content(candidate.content, f"{path}.content")
    check_attributes(candidate.attributes, f"{path}.attributes")


def check_vectors(vectors: NDArray[Any], count: int, path: str = "vectors") -> None:
    """Raise `InvalidField` unless `vectors` is (count, dim), and `InvalidVector` for a bad row."""
    if vectors.ndim != 2 or len(vectors) != count:
        problem = f"has the shape {vectors.shape}; one row for each of {count} candidates is due"
        raise InvalidField(path, problem)
    import numpy as np

    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise InvalidVector(f"{path}[{int(bad.argmax())}]", "is not finite")


def check_attributes(attributes: Attributes, path: str) -> None:
    """Raise `InvalidField` unless names, number and sizes are within the limits."""
    if len(attributes) > MAX_ATTRIBUTES:
        raise InvalidField(path, f"has {len(attributes)} entries; at most {MAX_ATTRIBUTES}")
    for name, value in attributes.items():
        if not _NAME.fullmatch(name):
            raise InvalidField(path, f"has the name {name[:80]!r}; use 1 to 64 of A-Za-z0-9_.-")
        strings = value if isinstance(value, tuple) else (value,)
        if len(strings) > MAX_LIST:
            raise InvalidField(
                f"{path}[{name!r}]", f"has {len(strings)} values; at most {MAX_LIST}"
            )
        for single in strings:
            _check_value(single, f"{path}[{name!r}]")


def _check_value(value: AttributeValue, path: str) -> None:
    if isinstance(value, str):
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            problem = "holds a lone surrogate, which is not valid Unicode"
            raise InvalidField(path, problem) from None
        if size > MAX_STRING_BYTES:
            raise InvalidField(path, f"is {size} bytes; at most {MAX_STRING_BYTES} are allowed")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidField(path, "is not finite")
    elif not isinstance(value, int):
        raise InvalidField(path, f"is of type {type(value).__name__}, which is not known")
    elif not -(2**63) <= value < 2**63:
        raise InvalidField(path, "does not fit into 64 bits")


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate that an ingest refused, and why."""

    id: str
    error: MmeshError


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What became of an ingest; `token` names its last write."""

    stored: int
    rejected: tuple[Rejected, ...]
    token: str


@dataclass(frozen=True, slots=True)
class Page:
    """Candidates of a listing; `next_token` is empty on the last page."""

    candidates: tuple[Candidate, ...]
    next_token: str
    vectors: FloatMatrix | None = field(default=None, repr=False, compare=False)
    """Unit rows (n, dim), one for each candidate; None unless asked for."""
    model_fingerprint: str = ""
    """Model of the vectors."""
