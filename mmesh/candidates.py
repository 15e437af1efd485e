"""Candidates: what is stored and found, and what an ingest and a listing say of them."""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

from mmesh.content import (
    Attributes,
    AttributeValue,
    Content,
    check_content,
)
from mmesh.errors import InvalidField, InvalidVector, MmeshError
from mmesh.values.ids import check_attribute_name, check_id
from mmesh.values.timestamps import to_utc

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from mmesh.vectors import FloatMatrix

MAX_ATTRIBUTES = 64
MAX_STRING_BYTES = 4096
MAX_LIST = 256
NOTICE_IDS = 20
"""Ids that a notice of an ingest names, unless told otherwise."""
MAX_VALUES = 65_536
"""Parts of contents, attributes and values of their lists that a request may have: see `oversize`
in the wire. So 256 candidates with 62 attributes of one value each are taken at once."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A thing that can be found."""

    id: str
    content: Content
    attributes: Attributes = field(default_factory=dict)
    problem: MmeshError | None = field(default=None, compare=False)
    """In answers: why its content is not whole. A picture that is lost has no bytes."""

    @property
    def size(self) -> int:
        """About how many bytes it takes in a message."""
        values = self.attributes.values()
        singles = (
            one for value in values for one in (value if isinstance(value, tuple) else (value,))
        )
        attributes = sum(32 + (len(one.encode()) if isinstance(one, str) else 0) for one in singles)
        return 64 + self.content.size + attributes


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


def as_numbers(given: ArrayLike, path: str) -> NDArray[Any]:
    """Return what callers have for numbers as an array, which may hold NaN and infinity.

    Raises:
        InvalidVector: it is ragged, or holds anything but real numbers.
    """
    import numpy as np

    try:
        array = np.asarray(given)
        np.isfinite(array)  # of real numbers of any kind, those of other libraries, too
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidVector(path, f"is no array of numbers: {error}") from None
    if array.dtype.kind in "cmM":
        raise InvalidVector(path, f"holds {array.dtype}; real numbers are due")
    return array


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
    check_count(attributes, path)
    for name, value in attributes.items():
        check_attribute_name(name, path)
        strings = value if isinstance(value, tuple) else (value,)
        check_list(strings, f"{path}[{name!r}]")
        for single in strings:
            _check_value(single, f"{path}[{name!r}]")


def check_count(attributes: Sized, path: str) -> None:
    """Raise `InvalidField` for more attributes than a candidate may have."""
    if len(attributes) > MAX_ATTRIBUTES:
        raise InvalidField(path, f"has {len(attributes)} entries; at most {MAX_ATTRIBUTES}")


def check_list(values: Sized, path: str) -> None:
    """Raise `InvalidField` for more strings than a list may have."""
    if len(values) > MAX_LIST:
        raise InvalidField(path, f"has {len(values)} values; at most {MAX_LIST}")


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
    elif isinstance(value, date):
        try:
            to_utc(value)
        except ValueError as error:
            raise InvalidField(path, str(error)) from None
    elif not isinstance(value, int):
        raise InvalidField(path, f"is of type {type(value).__name__}, which is not known")
    elif not -(2**63) <= value < 2**63:
        raise InvalidField(path, "does not fit into 64 bits")


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate that an ingest refused, and why."""

    id: str
    error: MmeshError
    number: int = -1
    """Its place among the candidates of the ingest, from 0."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that callers should know of candidates that were stored.

    Of an ingest it names the first ids, of an upsert all.
    """

    reason: str
    """In UPPER_SNAKE, such as TEXT_TRUNCATED."""
    message: str
    count: int
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What became of the candidates of an upsert or of an ingest."""

    stored: int
    rejected: tuple[Rejected, ...]
    """None of an upsert, which stores all or none."""
    token: str
    """Names the write, or the last one of an ingest; a search that carries it sees the write."""
    notices: tuple[Notice, ...] = ()
    duplicates: int = 0
    """Candidates whose id came before; of all with an id the last one stays."""


class NoticeBoard:
    """Notices by reason. A candidate that is sent again after a break counts once.

    Args:
        shown_ids: ids that a notice names.
    """

    def __init__(self, shown_ids: int) -> None:
        self._shown_ids = shown_ids
        self._found: dict[str, tuple[str, set[int], list[str]]] = {}

    def add(self, number: int, candidate_id: str, reason: str, message: str) -> None:
        """Take note of what was said of a candidate."""
        _, numbers, ids = self._found.setdefault(reason, (message, set(), []))
        if number not in numbers and len(ids) < self._shown_ids:
            ids.append(candidate_id)
        numbers.add(number)

    def all(self) -> tuple[Notice, ...]:
        """Return them."""
        found = self._found.items()
        return tuple(Notice(r, text, len(numbers), tuple(ids)) for r, (text, numbers, ids) in found)


@dataclass(frozen=True, slots=True)
class Page:
    """Candidates of a listing; `next_token` is empty on the last page."""

    candidates: tuple[Candidate, ...]
    next_token: str
    vectors: FloatMatrix | None = field(default=None, repr=False, compare=False)
    """Unit rows (n, dim), one for each candidate; None unless asked for."""
    model_fingerprint: str = ""
    """Model of the vectors."""
