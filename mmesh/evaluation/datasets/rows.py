"""Rows of JSONL, TSV and qrels files, plain or gzipped, each with its file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from mmesh.evaluation.datasets.dataset import Broken, DatasetError, Judgement
from mmesh.values.paths import why_not_read

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file: the object or the columns, and where it stands."""

    where: str
    values: Any


def one_of(*paths: Path) -> Path:
    """Return the first path that is a file, itself or gzipped.

    One that cannot be read as a file is told by who opens it.

    Raises:
        DatasetError: none is there.
    """
    for path in paths:
        for candidate in (path, path.with_name(path.name + ".gz")):
            if candidate.is_file() or why_not_read(candidate):
                return candidate
    raise DatasetError(f"{paths[0]} is missing")


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (where, line) for each line that is not empty; `.gz` is unpacked on the way.

    Raises:
        DatasetError: the file is missing, no file, cut off, or not UTF-8.
    """
    _check(path)
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", line.rstrip("\r\n")
    except (EOFError, zlib.error) as error:
        raise DatasetError(f"{path} is cut off after line {number}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read after line {number}: {error}") from None


def _check(path: Path) -> None:
    if problem := why_not_read(path):
        raise DatasetError(f"{path} {problem}")


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def plain_name(folder: Path) -> str:
    """Return the name of a folder as a part of a collection's: of a-z, 0-9 and -; may be empty."""
    name = folder.resolve().name.lower()
    return "".join(one if one.isascii() and one.isalnum() else "-" for one in name).strip("-")


def json_rows(path: Path) -> Iterator[Row | Broken]:
    """Yield the objects of a JSONL file."""
    for where, line in lines(path):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Broken(where, f"is not valid JSON: {error}")
            continue
        yield Row(where, values) if isinstance(values, dict) else Broken(where, "is no JSON object")


def json_list(path: Path) -> list[Json]:
    """Return the objects of a JSON file that is one list.

    Raises:
        DatasetError: it is missing, or something else.
    """
    loaded = json_file(path)
    if not isinstance(loaded, list) or not all(isinstance(one, dict) for one in loaded):
        raise DatasetError(f"{path} is not a list of JSON objects")
    return loaded


def json_file(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        DatasetError: it is missing or no JSON.
    """
    _check(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from None


def qrels_rows(path: Path, columns: Sequence[int] = (4, 5)) -> Iterator[Judgement | Broken]:
    """Yield judgements of TREC's form: `query 0 candidate grade`, and M-BEIR's task after it."""
    for where, line in lines(path):
        parts = line.split()
        if len(parts) not in columns:
            expected = " or ".join(map(str, columns))
            yield Broken(where, f"has {len(parts)} columns; a row of qrels has {expected}")
        else:
            yield judgement(where, parts[0], parts[2], parts[3])


def judgement(where: str, query: str, candidate: str, grade: str) -> Judgement | Broken:
    """Return a judgement of three columns."""
    try:
        return Judgement(query, candidate, int(grade), where)
    except ValueError:
        return Broken(where, f"has the relevance {grade!r}; a whole number is due")


def text_of(value: object) -> str:
    """Return a text; null, absent, empty and the word "null" are all no text."""
    text = value if isinstance(value, str) else ""
    return "" if text.strip() in ("", "null") else text


def checked_id(value: object) -> str:
    """Return an id as it can stand in a run file.

    Raises:
        ValueError: it is empty or holds white space.
    """
    if not isinstance(value, str | int) or isinstance(value, bool) or str(value) == "":
        raise ValueError("has no id")
    if len(str(value).split()) != 1 or str(value) != str(value).strip():
        raise ValueError(f"has the id {value!r}; white space cannot stand in run files")
    return str(value)
