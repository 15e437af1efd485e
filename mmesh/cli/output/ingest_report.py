"""What an ingest did, said on one screen."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from mmesh.candidates import Notice
from mmesh.cli.output.tables import errors, table
from mmesh.cli.output.writing import write_file

if TYPE_CHECKING:
    from rich.table import Table

Row = tuple[str, int, str, str]
"""Topic, count, what happened, and where."""
Note = tuple[str, int, str, str, Mapping[str, int]]
"""A row, and how often it happened at each place."""
REJECTED, UNREADABLE = "rejected", "UNREADABLE"
SCREEN_LINES = 36
"""Lines of the table; with the progress bar and the counts it fits into 40."""
_SIZES = [*((most, True) for most in range(9, 3, -1)), *((most, False) for most in range(6, 0, -1))]
"""Kinds of a topic that are shown, and whether long lines go on below: the first that fits is."""
_SHOWN_IDS, _WHERE_WIDTH, _WHAT = 2, 34, 2
_UNKNOWN = (
    "no picture was decoded, and neither the model nor the collection was asked: "
    "the mesh may refuse more"
)
_ROW = re.compile(r"(?P<file>[^\n]*?), row (?P<row>\d+): ")
_FIELD = re.compile(r"candidates?(\[\d+\])?\.")
_DETAILS = re.compile(r"'[^']*'|\"[^\"]*\"|\([^()]*\)|\S*/\S*|\d+")
"""What differs between refusals of one kind."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of everything that the sources hold."""

    stored: int
    new: int
    changed: int
    unchanged: int
    refused: Sequence[tuple[str, str, str]]
    """Id, reason and message of each."""
    removed: Sequence[str]
    gone: Sequence[str]
    """Stored, gone from the sources, and not removed."""
    notices: Sequence[Notice]
    """What the mesh said of candidates that it stored."""
    notes: Sequence[Note]
    """What the reader changed or passed over."""
    dry_run: bool = False
    sync: bool = False
    obstacle: str = ""
    """Why nothing was removed although that was wanted."""

    @property
    def is_bad(self) -> bool:
        """Tell whether something was not done that was asked for."""
        return bool(self.refused or self.obstacle)


def tell(outcome: Outcome, report: Path | None = None) -> None:
    """Print the counts to stdout, and on one screen to stderr what there is to know of them.

    Args:
        outcome: what is told.
        report: a file that gets all of it, as JSON Lines.
    """
    print(_headline(outcome))
    kinds = _kinds(outcome)
    if kinds:
        errors().print(_fitting(kinds, report), markup=False)
    if outcome.obstacle:
        errors().print(f"nothing is removed: {outcome.obstacle}", markup=False)
    if outcome.dry_run and outcome.stored:
        errors().print(_UNKNOWN, markup=False)
    if report is not None:
        write_file(report, "".join(json.dumps(one) + "\n" for one in _all(outcome)))


def _all(outcome: Outcome) -> Iterator[dict[str, object]]:
    """Yield every refusal, and every other line of the report with all ids or places."""
    for candidate_id, reason, message in outcome.refused:
        yield {"topic": REJECTED, "id": candidate_id, "reason": reason, "message": message}
    for topic, count, what, where, places in outcome.notes:
        yield _told(topic, count, what, where) | {"places": dict(places)}
    for one in outcome.notices:
        yield _told(one.reason, one.count, one.message, _some(one)) | {"ids": list(one.ids)}
    for topic, ids in (("gone from the sources", outcome.gone), ("removed", outcome.removed)):
        if ids:
            yield _told(topic, len(ids), "", _first(ids)) | {"ids": list(ids)}


def _told(topic: str, count: int, what: str, where: str) -> dict[str, object]:
    return {"topic": topic, "count": count, "message": what, "where": where}


def _fitting(kinds: Sequence[Row], report: Path | None) -> Table:
    """Return a table that fits on a screen: as many kinds of each topic as there is room for."""
    made = None
    for most, wraps in _SIZES:
        made = _table(kinds, most, wraps, report)
        if len(errors().render_lines(made, pad=False)) <= SCREEN_LINES:
            break
    assert made is not None
    return made


def _table(kinds: Sequence[Row], most: int, wraps: bool, report: Path | None) -> Table:
    """Return the table with at most so many kinds of a topic, the topic in its first line only."""
    lines = []
    for topic, rows in groupby(kinds, key=itemgetter(0)):
        found = list(rows)
        shown, others = (
            (found, []) if len(found) <= most else (found[: most - 1], found[most - 1 :])
        )
        if others:
            hint = "" if report else "; --report FILE lists all"
            count = sum(one[1] for one in others)
            shown.append((topic, count, f"others, of {len(others)} kinds{hint}", ""))
        lines += [("" if n else topic, *line[1:]) for n, line in enumerate(shown)]
    made = table(["", "", "", ""], lines)
    for place, column in enumerate(made.columns):
        column.no_wrap, column.overflow = not wraps, "fold" if wraps else "ellipsis"
        if place < _WHAT:
            column.min_width = max(len(str(line[place])) for line in lines)
    made.columns[-1].max_width = max(_WHERE_WIDTH, errors().width // 3)
    return made


def _kinds(outcome: Outcome) -> list[Row]:
    """Return what there is to say, refusals of one kind together; those of a topic follow on."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for candidate_id, reason, message in outcome.refused:
        where, what = _place(candidate_id, message)
        what = what if reason == UNREADABLE else f"{reason}: {what}"
        groups.setdefault(_DETAILS.sub("", what), []).append((where, what))
    refused = sorted(groups.values(), key=len, reverse=True)
    return [
        *_lines(outcome),
        *(
            (REJECTED, len(alike), alike[0][1], _first([where for where, _ in alike]))
            for alike in refused
        ),
    ]


def _place(candidate_id: str, message: str) -> tuple[str, str]:
    """Return where a refused candidate came from, its row if that is told, and what is wrong."""
    found = _ROW.match(message)
    if found is not None:
        return f"{found['file']}:{found['row']}", message[found.end() :]
    return candidate_id, _FIELD.sub("", message)


def _lines(outcome: Outcome) -> list[Row]:
    """Return topic, count, what and where of all but refusals."""
    lines: list[Row] = [note[:4] for note in outcome.notes]
    lines += [(one.reason, one.count, one.message, _some(one)) for one in outcome.notices]
    if outcome.gone:
        hint = "" if outcome.sync else "--sync removes them"
        lines.append(("gone from the sources", len(outcome.gone), hint, _first(outcome.gone)))
    return lines


def _headline(outcome: Outcome) -> str:
    """Return the counts; those that are rarely of interest only when they are not 0."""
    if outcome.dry_run:
        would = f"would store {outcome.stored} ({outcome.new} new, {outcome.changed} changed)"
        gone = 0 if outcome.obstacle else len(outcome.gone)
        removed = f", remove {gone}" if outcome.sync else ""
        return f"{would}, reject {len(outcome.refused)}{_unchanged(outcome)}{removed}"
    removed = f", removed {len(outcome.removed)}" if outcome.removed else ""
    return f"stored {outcome.stored}, rejected {len(outcome.refused)}{_unchanged(outcome)}{removed}"


def _unchanged(outcome: Outcome) -> str:
    return f", unchanged {outcome.unchanged}" if outcome.unchanged else ""


def _some(notice: Notice) -> str:
    more = notice.count > len(notice.ids) <= _SHOWN_IDS
    return f"{_first(notice.ids)}, …" if more else _first(notice.ids)


def _first(ids: Sequence[str]) -> str:
    """Return some ids."""
    return ", ".join([*ids[:_SHOWN_IDS], "…"] if len(ids) > _SHOWN_IDS else ids)
