"""Rows of delimited text: the dialect is sniffed, types are those that whole columns have."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mmesh.cli.files.sources.items import FileEnded, Unreadable
from mmesh.cli.files.sources.notes import Notes, Topic
from mmesh.cli.files.sources.row_shape import check_columns
from mmesh.cli.files.sources.text_lines import kind_of, lines_of
from mmesh.values.timestamps import parse_timestamp

LARGEST_CELL = 64 << 20
"""Characters of a cell, which may be a picture in base64."""
DELIMITERS = ",;\t|"
_SAMPLE_LINES = 32
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})")
_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-][0-9]+)?")
_ZERO_FIRST = re.compile(r"-?0[0-9]")
"""What is written as computers write numbers; +49 and 12E3 are codes."""
_DIGITS = 18
_NO_VALUE = {"", "null", "nan", "n/a", "na", "none"}
"""What stands for absence in a column whose other cells are numbers or truth values."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a file is written; what is empty is found out."""

    delimiter: str = ""
    encoding: str = ""


Record = list[str] | str
"""The cells of a row, or why it cannot be read."""


def csv_rows(
    path: Path, notes: Notes, dialect: Dialect, untyped: frozenset[str]
) -> Iterator[dict[str, Any] | Unreadable]:
    """Yield the rows; the cells of `untyped` columns (lower case) stay texts.

    The file is read twice: the type of a column follows from all its cells. Rows of empty cells are
    none, and what is refused comes as `Unreadable` of the file; who counts them has their numbers.

    Raises:
        FileEnded: its header cannot be read, or names neither text nor image.
    """
    csv.field_size_limit(LARGEST_CELL)
    delimiter = dialect.delimiter or _delimiter_of(path, dialect.encoding)
    first = _records(lines_of(path, Notes(), dialect.encoding), delimiter)
    record = next(first, None)
    if record is None:
        return
    header = _header(record, path, notes)
    check_columns([name for name in header if name])
    readers = _types(first, header, untyped, decimal_comma=delimiter == ";")
    records = _records(lines_of(path, notes, dialect.encoding), delimiter)
    next(records)
    for record in records:
        if isinstance(record, str):
            yield Unreadable(path.name, record)
        elif any(cell.strip() for cell in record[len(header) :]):
            problem = f"has {len(record)} cells; the header names {len(header)}"
            yield Unreadable(path.name, problem)
        elif any(record):
            yield _row(record, header, readers)


def _row(
    record: list[str], header: list[str], readers: dict[str, Callable[[str], Any]]
) -> dict[str, Any]:
    cells = zip(header, record, strict=False)
    return {name: readers[name](cell) for name, cell in cells if name and cell}


def _header(record: Record, path: Path, notes: Notes) -> list[str]:
    """Return the names of the columns; empty for one that is left out."""
    if isinstance(record, str):
        raise FileEnded(f"its header {record}")
    names: list[str] = []
    for place, cell in enumerate(record, start=1):
        name = cell.strip()
        if not name and place < len(record):
            notes.add(Topic.LEFT_OUT, "columns without a name", f"{path.name}: column {place}")
        if name and name in names:
            notes.add(Topic.LEFT_OUT, "second columns of a name", f"{path.name}: {name}")
            name = ""
        names.append(name)
    return names


# -- records


def _records(lines: Iterator[str], delimiter: str) -> Iterator[Record]:
    """Yield records; one that cannot be read ends with its first line, not with the file."""
    source = _Lines(lines)
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        source.mark()
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"is not valid CSV: {error}"
            source.back_to_second()
            reader = csv.reader(source, delimiter=delimiter, strict=True)
        else:
            if record:
                yield record


class _Lines:
    """Lines, of which those of the record that is read may be read again."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._ahead: deque[str] = deque()
        self._since_mark: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._lines)
        self._since_mark.append(line)
        return line

    def mark(self) -> None:
        """Begin a record."""
        self._since_mark.clear()

    def back_to_second(self) -> None:
        """Go back to the second line of the record."""
        self._ahead.extendleft(reversed(self._since_mark[1:]))


def _delimiter_of(path: Path, encoding: str) -> str:
    """Return the delimiter that cuts the first records alike; a comma where none does."""
    if kind_of(path) in (".tsv", ".tab"):
        return "\t"
    sample = list(islice(lines_of(path, Notes(), encoding), _SAMPLE_LINES))
    return max(DELIMITERS, key=lambda delimiter: _evenness(sample, delimiter))


def _evenness(sample: list[str], delimiter: str) -> tuple[float, int]:
    """Return the share of records that are as wide as the header, and that width."""
    records = [r for r in _records(iter(sample), delimiter) if isinstance(r, list)]
    width = len(records[0]) if records else 0
    if width < 2:
        return (0.0, 0)
    return (sum(len(r) == width for r in records) / len(records), width)


# -- types


def _types(
    records: Iterator[Record], header: list[str], untyped: frozenset[str], *, decimal_comma: bool
) -> dict[str, Callable[[str], Any]]:
    """Return what reads the cells of each column."""
    open_ = {
        place: _Column(decimal_comma)
        for place, name in enumerate(header)
        if name and name.lower() not in untyped
    }
    columns = dict(open_)
    for record in records:
        if not open_:
            break
        if isinstance(record, str):
            continue
        for place in [p for p, c in open_.items() if p < len(record) and not c.fits(record[p])]:
            del open_[place]
    readers: dict[str, Callable[[str], Any]] = dict.fromkeys(header, str)
    return readers | {header[place]: column.reader() for place, column in columns.items()}


class _Column:
    """The types that all cells of a column have had so far."""

    def __init__(self, decimal_comma: bool) -> None:
        self._point = "," if decimal_comma else "."
        self._types = dict.fromkeys(("integer", "float", "boolean", "date"), True)
        self._seen = False

    def fits(self, cell: str) -> bool:
        """Take note of a cell; return False when the column can only be text."""
        word = cell.strip().lower()
        if word in _NO_VALUE:
            return True
        self._seen, types = True, self._types
        types["integer"] &= _is_integer(word)
        types["float"] &= _is_number(word.replace(self._point, "."))
        types["boolean"] &= word in ("true", "false")
        types["date"] = types["date"] and _is_date(word)
        return any(types.values())

    def reader(self) -> Callable[[str], Any]:
        """Return what makes a value of a cell."""
        if not self._seen:
            return str
        if self._types["integer"]:
            return _or_absent(int)
        if self._types["float"]:
            return _or_absent(lambda word: float(word.replace(self._point, ".")))
        if self._types["boolean"]:
            return _or_absent(lambda word: word == "true")
        if self._types["date"]:
            return _or_absent(parse_timestamp)
        return str


def _is_integer(word: str) -> bool:
    return _INTEGER.fullmatch(word) is not None and -(2**63) <= int(word) < 2**63


def _is_number(word: str) -> bool:
    """Tell whether it is a number; with a needless zero first, or too many digits, it is a code."""
    is_code = _ZERO_FIRST.match(word) is not None or (len(word) > _DIGITS and word.isdecimal())
    return _NUMBER.fullmatch(word) is not None and not is_code


def _is_date(word: str) -> bool:
    try:
        parse_timestamp(word)
    except ValueError:
        return False
    return True


def _or_absent(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(cell: str) -> Any:
        word = cell.strip().lower()
        return None if word in _NO_VALUE else convert(word)

    return read
