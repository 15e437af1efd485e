"""What a mesh shall do: rows, modalities, queries a second; and what is too much to ask."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

MODALITIES = ("text", "image", "image-text")
MOST_DIM, MOST_REPLICAS, MOST_RERANKED = 65_536, 16, 1_000


class ImpossibleWish(ValueError):
    """No mesh can do what is asked for; the message says what would be possible."""


class Gpu(enum.Enum):
    """Which GPU encoders and judges run on."""

    NONE = "none"
    H100 = "h100"
    H200 = "h200"


class VectorKind(enum.Enum):
    """How segments hold vectors: the collection's `index_factory`."""

    FLOAT16 = "float16"
    """Codes of half a byte for two dimensions, and half precision for the best: the default."""
    FLOAT32 = "float32"
    """The same codes, and vectors as they came."""
    INT8 = "int8"
    """One byte a dimension, nothing else."""
    FLAT = "flat"
    """Exact search of float32."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for.

    Raises:
        ImpossibleWish: a number is out of its range.
    """

    rows: int
    dim: int
    modalities: Mapping[str, float] = field(default_factory=lambda: {"text": 1.0})
    """Share of each modality, in all 1."""
    qps: float = 10.0
    reranked: int = 0
    """Candidates that are judged in each search."""
    replicas: int = 2
    gpu: Gpu = Gpu.NONE
    vectors: VectorKind = VectorKind.FLOAT16
    text_bytes: int = 500
    picture_kb: float = 100.0
    pod_memory_gib: float = 64.0
    """Most memory that an index pod may request."""
    pod_cores: int = 8
    """Most cores that an index pod may request."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check("rows", self.rows, 1, 10**12)
        _check("dim", self.dim, 1, MOST_DIM)
        _check("qps", self.qps, 0, 10**7)
        _check("rerank", self.reranked, 0, MOST_RERANKED)
        _check("replicas", self.replicas, 1, MOST_REPLICAS)
        _check("pod-cores", self.pod_cores, 1, 256)
        _check("text-bytes", self.text_bytes, 0, 10**7)
        _check("picture-kb", self.picture_kb, 0, 10**5)
        _check("pod-memory", self.pod_memory_gib, 1, 10**6)
        if strange := self.modalities.keys() - set(MODALITIES):
            raise ImpossibleWish(f"modality {min(strange)!r} is none of {', '.join(MODALITIES)}")
        if min(self.modalities.values(), default=0.0) < 0 or not abs(self._sum - 1) <= 0.01:
            shares = ",".join(f"{name}={share:g}" for name, share in self.modalities.items())
            raise ImpossibleWish(f"shares of modalities add up to 1; {shares} to {self._sum:g}")

    @property
    def _sum(self) -> float:
        return sum(self.modalities.values())

    @property
    def text_share(self) -> float:
        """Share of candidates that have a text."""
        return sum(self.modalities.get(name, 0.0) for name in ("text", "image-text")) / self._sum

    @property
    def picture_share(self) -> float:
        """Share of candidates that have a picture, which takes an encoder or a judge longer."""
        return sum(self.modalities.get(name, 0.0) for name in ("image", "image-text")) / self._sum


def _check(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ImpossibleWish(f"--{name} is {value:,.15g}; it is from {least:,} to {most:,}")
