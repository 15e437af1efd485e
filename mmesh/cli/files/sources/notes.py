"""Notes of an ingest: what was passed over or changed, counted by kind and by where."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

_MOST_PLACES, _SHOWN_PLACES = 100, 2


class Topic(enum.Enum):
    """What a note is about; the report has them in this order."""

    PASSED_OVER = "passed over"
    CONVERTED = "pictures converted"
    ENCODING = "not UTF-8"
    RENAMED = "attributes renamed"
    CHANGED = "attributes changed"
    LEFT_OUT = "attributes left out"
    REPEATED = "ids that came again"
    MOVED = "ids that another source had"
    OPTIONS = "options"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a report."""

    topic: str
    count: int
    what: str
    where: str
    """Some of the places, with how often when that is more than once."""
    places: Mapping[str, int]
    """How often it happened at each of the places that were kept."""


@dataclass(slots=True)
class _Note:
    count: int = 0
    places: Counter[str] = field(default_factory=Counter)

    def where(self) -> str:
        """Return the places where it happened most."""
        shown = [
            place if times == 1 else f"{place} x{times}"
            for place, times in self.places.most_common(_SHOWN_PLACES)
        ]
        more = self.count > sum(times for _, times in self.places.most_common(_SHOWN_PLACES))
        return ", ".join([*shown, "…"] if more else shown)


class Notes:
    """Counts by topic, by what happened, and by where.

    Args:
        most_places: places of each kind that are kept.
    """

    def __init__(self, most_places: int = _MOST_PLACES) -> None:
        self._most_places = most_places
        self._found: dict[Topic, dict[str, _Note]] = {}

    def add(self, topic: Topic, what: str, where: str, count: int = 1) -> None:
        """Count something that happened to a file, row or column."""
        note = self._found.setdefault(topic, {}).setdefault(what, _Note())
        note.count += count
        if where in note.places or len(note.places) < self._most_places:
            note.places[where] += count

    def lines(self) -> list[Line]:
        """Return what there is to say, by topic and the most frequent first."""
        return [line for topic in Topic for line in self._lines_of(topic)]

    def _lines_of(self, topic: Topic) -> list[Line]:
        kinds = sorted(self._found.get(topic, {}).items(), key=lambda kind: -kind[1].count)
        return [
            Line(topic.value, note.count, what, note.where(), note.places) for what, note in kinds
        ]
