"""Ids and names: which characters they may hold, and file names as ids (percent-encoding).

An id is any Unicode but control characters, line and paragraph separators and surrogates: all
spaces, format characters (joiners, soft hyphens, marks of direction), private use and code points
that are not assigned yet are taken. Ids are compared byte by byte: what looks alike in two normal
forms is two ids. `id_of_path` maps every file name, even bytes that are no UTF-8, to an id of its
own, and `path_of_id` maps it back.
"""

from __future__ import annotations

import os
import re
import unicodedata

from mmesh.errors import InvalidField

MAX_ID_BYTES = 512
MAX_NAME_BYTES = 256
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Fixed in all versions of Unicode, so every process and release takes the same ids."""
_NOT_AS_IT_IS = re.compile(f"{_FORBIDDEN.pattern}|%(?=[0-9A-Fa-f]{{2}})")
_ENCODED = re.compile(rb"%([0-9A-Fa-f]{2})")
_CONTROLS = {
    "\0": "NULL",
    "\t": "TAB",
    "\n": "LINE FEED",
    "\r": "CARRIAGE RETURN",
    "\x1b": "ESCAPE",
    "\x7f": "DELETE",
    "\x85": "NEXT LINE",
}
"""Unicode has no names for these."""


def check_id(candidate_id: str, path: str) -> None:
    """Raise `InvalidField` unless the id is 1 to 512 bytes of what an id may hold."""
    if not candidate_id:
        raise InvalidField(path, "is empty; every candidate needs an id")
    _check_characters(candidate_id, path)
    size = len(candidate_id.encode())
    if size > MAX_ID_BYTES:
        raise InvalidField(path, f"is {size} bytes; at most {MAX_ID_BYTES} are allowed")


def is_id(text: str) -> bool:
    """Tell whether a candidate may have this id."""
    try:
        check_id(text, "")
    except InvalidField:
        return False
    return True


def check_attribute_name(name: str, path: str) -> None:
    """Raise `InvalidField` unless the name has 1 to 256 bytes, of the characters of an id."""
    if not name.strip():
        raise InvalidField(path, "has an attribute without a name")
    shown = f"has the name {name[:80]!r}, which "
    _check_characters(name, path, shown)
    size = len(name.encode())
    if size > MAX_NAME_BYTES:
        raise InvalidField(path, f"{shown}is {size} bytes; at most {MAX_NAME_BYTES} are allowed")


def _check_characters(text: str, path: str, shown: str = "") -> None:
    found = _FORBIDDEN.search(text)
    if found is None:
        return
    raise InvalidField(
        path,
        f"{shown}holds {name_of_character(found[0])} as character {found.start() + 1}; control "
        "characters, line separators and bytes that are no UTF-8 are not allowed. Write them "
        f"percent-encoded, such as {_percent(found[0])}",
    )


def name_of_character(character: str) -> str:
    """Return how Unicode calls a character, such as `U+202F NARROW NO-BREAK SPACE`."""
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # as Python reads a byte that cannot be decoded
        return f"the byte 0x{number - 0xDC00:02X}, which is no UTF-8"
    kinds = {"Cc": "a control character", "Cs": "a surrogate", "Co": "of a private use area"}
    kind = kinds.get(unicodedata.category(character), "not assigned")
    name = _CONTROLS.get(character) or unicodedata.name(character, f"({kind})")
    return f"U+{number:04X} {name}"


def id_of_path(path: str | bytes | os.PathLike[str]) -> str:
    """Return the id of a path: the path itself, with what no id may hold percent-encoded.

    A `%` before two hexadecimal digits is encoded as well (`%25`), so no two paths have one id.
    Paths that are not of bytes hold bytes that are no UTF-8 as `os.fsdecode` gives them.
    """
    raw = os.fspath(path)
    text = raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else raw
    return _NOT_AS_IT_IS.sub(lambda found: _percent(found[0]), text)


def path_of_id(candidate_id: str) -> str:
    """Return the path that `id_of_path` made this id of, as `os.fsdecode` would give it."""
    raw = _ENCODED.sub(lambda found: bytes([int(found[1], 16)]), candidate_id.encode())
    return raw.decode("utf-8", "surrogateescape")


def _percent(text: str) -> str:
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte; only Windows has such names
        raw = text.encode("utf-8", "surrogatepass")
    return "".join(f"%{byte:02X}" for byte in raw)
