"""What was not taken and why: counted by kind, with the first examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 200

BROKEN, NO_PICTURE, TWICE = "BROKEN_ROW", "MISSING_PICTURE", "DUPLICATE_ID"
"""Kinds beside the reasons that the mesh gives."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """One row that was not taken."""

    where: str
    kind: str
    reason: str


@dataclass
class Rejections:
    """All that was not taken."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[Rejection] = field(default_factory=list)

    def add(self, where: str, kind: str, reason: str) -> None:
        """Count one."""
        self.counts[kind] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(Rejection(where, kind, reason))

    def extend(self, others: Iterable[Rejections]) -> None:
        """Count those of others."""
        for other in others:
            self.counts.update(other.counts)
            self.examples += other.examples[: EXAMPLES - len(self.examples)]

    @property
    def total(self) -> int:
        """How many there are."""
        return self.counts.total()

    def as_json(self) -> dict[str, Any]:
        """Return JSON values."""
        examples = [[one.where, one.kind, one.reason] for one in self.examples]
        return {"counts": dict(sorted(self.counts.items())), "examples": examples}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Rejections:
        """Return what `as_json` gave."""
        examples = [Rejection(*one) for one in values["examples"]]
        return cls(Counter(values["counts"]), examples)
