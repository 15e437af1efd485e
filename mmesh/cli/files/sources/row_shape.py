"""The one shape of rows: columns id, text, image and attributes; all others are attributes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmesh.cli.files.sources.attribute_values import is_absent
from mmesh.cli.files.sources.items import FileEnded

OURS = ("id", "text", "image", "attributes")
VECTOR = "vector"
"""A column of vectors, which `--vectors` reads."""
_SHOWN_COLUMNS = 12


def check_columns(names: Sequence[str]) -> None:
    """Raise `FileEnded` unless a column is text or image."""
    if not {"text", "image"} & {name.strip().lower() for name in names}:
        raise FileEnded(f"has the columns {listed(names)}; none of them is text or image")


def listed(names: Sequence[str]) -> str:
    """Return the names of columns, as many as fit into a line."""
    more = len(names) - _SHOWN_COLUMNS
    return ", ".join(names[:_SHOWN_COLUMNS]) + (f" and {more} more" if more > 0 else "")


def canonical(
    row: Mapping[str, Any], note: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """Return a row with our columns in lower case, and without what is absent.

    Of several in various cases the last one stays, and `note` is called with the name.
    """
    made: dict[str, Any] = {}
    for column, value in row.items():
        if is_absent(value):
            continue
        lower = column.strip().lower()
        ours = lower in OURS and (column == lower or lower not in row)
        if ours and lower in made:
            note(lower)
        made[lower if ours else column] = value
    return made


def id_of(row: Mapping[str, Any]) -> str | None:
    """Return the id of a row; None without one. Only what is absent or empty is none.

    Raises:
        ValueError: it is neither a text nor a number.
    """
    value = row.get("id")
    match value:
        case None | "":
            return None
        case bool():
            raise ValueError(f"has the id {json.dumps(value)}; a text or a number is due")
        case str():
            value.encode()  # a lone surrogate is refused here, since nothing can store it
            return value
        case int():
            return str(value)
        case float():
            return str(int(value)) if value.is_integer() else repr(value)
        case bytes():
            return value.decode()
    if hasattr(value, "as_integer_ratio") or hasattr(value, "hex"):  # Decimal, UUID
        return str(value)
    raise ValueError(f"has an id that is {kind_of(value)}; a text or a number is due")


def text_of(row: Mapping[str, Any]) -> str:
    """Return the text of a row; empty without one.

    Raises:
        ValueError: it is neither a text nor a number.
    """
    value = row.get("text")
    match value:
        case None:
            return ""
        case str():
            return value if value.strip() else ""
        case bytes():
            return value.decode()
        case int() | float() if not isinstance(value, bool):
            return str(value)
    raise ValueError(f"has a text that is {kind_of(value)}; a text is due")


def attributes_of(
    row: Mapping[str, Any], note: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """Return the values that are to be attributes: those given, and all other columns.

    A column stays where another value of its name is given, and `note` is called with the name.

    Raises:
        ValueError: `attributes` is no object.
    """
    given = row.get("attributes")
    if isinstance(given, str | bytes):
        given = _object_in(given)
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"has attributes that are {kind_of(given)}; an object is due")
    extra = {name: value for name, value in row.items() if name not in (*OURS, VECTOR)}
    named = {str(name): value for name, value in (given or {}).items()}
    for name in named.keys() & extra.keys():
        if named[name] != extra[name]:
            note(name)
    return named | extra


def _object_in(text: str | bytes) -> Any:
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError):
        raise ValueError(f"has attributes {text[:40]!r}, which are no JSON object") from None


def kind_of(value: Any) -> str:
    """Return what a value is, in words that JSON has too."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        tuple: "a list",
        dict: "an object",
        bytes: "bytes",
    }
    return names.get(type(value), f"a {type(value).__name__}")
