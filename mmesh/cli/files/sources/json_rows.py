"""Rows of JSON: a line each (JSON Lines), an array of them, or one after another."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mmesh.cli.files.sources.items import FileEnded, Unreadable
from mmesh.cli.files.sources.notes import Notes
from mmesh.cli.files.sources.text_lines import kind_of, lines_of

Row = dict[str, Any]
_NO_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def json_rows(
    path: Path, notes: Notes | None = None, encoding: str = ""
) -> Iterator[Row | Unreadable]:
    """Yield the objects of a file; what is none comes as `Unreadable` of the file.

    Empty lines are no rows; who counts the others has their numbers.

    Raises:
        FileEnded: the rest cannot be read.
    """
    lines = lines_of(path, notes or Notes(), encoding)
    head: list[str] = []
    while not head or (not head[-1].strip()):
        if (line := next(lines, None)) is None:
            return iter(())
        head.append(line)
    first, lines = head[-1], chain(head, lines)
    if first.lstrip().startswith("["):
        return (_checked(value, path) for value in _arrays(_Text(lines)))
    if first.strip() == "{" or (kind_of(path) == ".json" and not _is_json(first)):
        return (_checked(value, path) for value in _values(_Text(lines)))
    return _by_line(lines, path)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _by_line(lines: Iterator[str], path: Path) -> Iterator[Row | Unreadable]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            reason = f"line {number} is not valid JSON: {error.msg} at column {error.colno}"
            yield Unreadable(path.name, reason)
        except (ValueError, RecursionError) as error:
            yield Unreadable(path.name, f"line {number} is not valid JSON: {error}")
        else:
            yield _checked(row, path)


def _checked(value: Any, path: Path) -> Row | Unreadable:
    return value if isinstance(value, dict) else Unreadable(path.name, "is not a JSON object")


class _Text:
    """Text of which a part is in memory: as many lines as the value that is read needs."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._held, self._at = "", 0

    def peek(self) -> str:
        """Return the next character that is no space; empty at the end."""
        while True:
            self._at = _NO_SPACE.match(self._held, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._held):
                return self._held[self._at]
            line = next(self._lines, None)
            if line is None:
                return ""
            self._held, self._at = line, 0

    def skip(self) -> None:
        """Pass over a character."""
        self._at += 1

    def value(self) -> Any:
        """Return the next value, reading twice as much each time until it is whole."""
        wanted = 1
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._held, self._at)
                return value
            except (ValueError, RecursionError) as error:
                more = list(islice(self._lines, wanted))
                if not more or isinstance(error, RecursionError):
                    problem = getattr(error, "msg", error)  # without a place, which is in a part
                    raise FileEnded(f"what follows is not valid JSON: {problem}") from None
            self._held, self._at = self._held[self._at :] + "".join(more), 0
            wanted *= 2


def _values(text: _Text) -> Iterator[Any]:
    while text.peek():
        yield text.value()


def _arrays(text: _Text) -> Iterator[Any]:
    """Yield the values of arrays that follow each other, as `cat` leaves them."""
    while following := text.peek():
        if following != "[":
            raise FileEnded("what follows its array is none")
        yield from _array(text)


def _array(text: _Text) -> Iterator[Any]:
    text.skip()
    while (following := text.peek()) not in ("]", ""):
        yield text.value()
        following = text.peek()
        if following == ",":
            text.skip()
        elif following not in ("]", ""):
            raise FileEnded("its array goes on without a comma")
    if not following:
        raise FileEnded("its array does not end; it is cut short")
    text.skip()
