"""How many negatives of which kind were found, and why others were not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mmesh.content import Modality
from mmesh.training.mining.drawing import Drop, Eligible, Kind, Negative


@dataclass
class Counts:
    """Of the queries that want one modality."""

    queries: int = 0
    with_wrong_modality: int = 0
    """Queries with any C1."""
    with_low_rank: int = 0
    """Queries with any C2."""
    empty: int = 0
    """Queries with neither."""
    positive_below: int = 0
    """Queries whose positives are all below the ranks looked at."""
    drawn: Counter[Kind] = field(default_factory=Counter)
    dropped: Counter[Drop] = field(default_factory=Counter)

    def add(self, found: Eligible, drawn: tuple[Negative, ...]) -> None:
        """Count a query."""
        self.queries += 1
        self.with_wrong_modality += bool(found.wrong_modality)
        self.with_low_rank += bool(found.low_rank)
        self.empty += not drawn
        self.positive_below += not found.positive_rank
        self.drawn.update(one.kind for one in drawn)
        self.dropped.update(found.dropped)


@dataclass
class Statistics:
    """Of a mining run."""

    by_wanted: dict[Modality, Counts] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    """Queries that are not in the file, by reason."""
    examples: dict[str, str] = field(default_factory=dict)
    """One query for each reason."""

    def add(self, wanted: Modality, found: Eligible, drawn: tuple[Negative, ...]) -> None:
        """Count a query that is in the file."""
        self.by_wanted.setdefault(wanted, Counts()).add(found, drawn)

    def refuse(self, reason: str, where: str, detail: str) -> None:
        """Count a query that is not in the file."""
        self.refused[reason] += 1
        self.examples.setdefault(reason, f"{where}: {detail}")

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return columns and rows for people."""
        dropped = [f"dropped: {drop.value.replace('_', ' ')}" for drop in Drop]
        fixed = ["wanted", "queries", "C1", "C2", "empty", "positive below"]
        columns = [*fixed, "drawn C1", "drawn C2", *dropped]
        rows = [
            [wanted.value, *map(str, (
                one.queries, one.with_wrong_modality, one.with_low_rank, one.empty,
                one.positive_below, one.drawn[Kind.WRONG_MODALITY], one.drawn[Kind.LOW_RANK],
                *(one.dropped[drop] for drop in Drop),
            ))]
            for wanted, one in sorted(self.by_wanted.items(), key=lambda item: item[0].value)
        ]  # fmt: skip
        return columns, rows
