"""Lines of text files in whatever encoding they have, compressed or not."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import click

from mmesh.cli.files.sources.notes import Notes, Topic

SAMPLE = 1 << 16
"""Bytes at the beginning of a file by which its encoding is told."""
FALLBACK = "cp1252"
"""What lines are that are not UTF-8: Windows-1252, of which Latin-1 is nearly a part."""
GZIP = ".gz"
_GZIP = b"\x1f\x8b"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_MARK = "\ufeff"
"""What a byte order mark is as a character, which encodings without a mark of their own leave."""
_UNDECODED = "\ufffd"


def kind_of(source: Path) -> str:
    """Return the ending that says what kind of rows a file has, without that of gzip."""
    suffixes = [suffix.lower() for suffix in source.suffixes]
    if suffixes and suffixes[-1] == GZIP:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_packed(path: Path) -> bool:
    """Tell whether a file is compressed by gzip, whatever its name says."""
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading; one that is compressed by gzip is read as what it holds."""
    packed = is_packed(path)
    with io.BufferedReader(io.FileIO(path), SAMPLE) as file:
        if packed:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield io.BufferedReader(unpacked, SAMPLE)  # type: ignore[type-var]
        else:
            yield file  # type: ignore[misc]  # the stubs tell readers of files from others


def check_encoding(name: str) -> None:
    """Raise a usage error unless an encoding of this name is known."""
    try:
        " ".encode(name)
    except (LookupError, UnicodeError):  # there are also codecs of bytes, such as hex
        raise click.BadParameter(f"{name!r} is no encoding that is known") from None


def text_of(data: bytes, name: str, notes: Notes) -> str:
    """Return the text of a small file."""
    return "".join(_decoded(io.BufferedReader(io.BytesIO(data)), name, notes, ""))  # type: ignore[type-var]


def lines_of(path: Path, notes: Notes, encoding: str = "") -> Iterator[str]:
    """Yield the lines of a file with their ends; the notes say when it is not in UTF-8."""
    with opened(path) as file:
        yield from _decoded(file, path.name, notes, encoding)


def encoding_of(sample: bytes) -> str:
    """Return the encoding by byte order mark, or by where its zeros are; else UTF-8."""
    for mark, encoding in _MARKS:
        if sample.startswith(mark):
            return encoding
    zeros = sample[0:1024:2].count(0), sample[1:1024:2].count(0)
    if max(zeros) < 2 or min(zeros) > max(zeros) // 4:
        return "utf-8"
    return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"


def _decoded(file: io.BufferedReader, name: str, notes: Notes, encoding: str) -> Iterator[str]:
    sample = file.peek(SAMPLE)
    found = codecs.lookup(encoding).name if encoding else encoding_of(sample)
    if found in ("utf-8", "utf-8-sig"):
        yield from _decoded_by_line(file, sample, name, notes)
        return
    if not encoding:
        notes.add(Topic.ENCODING, f"files read as {found}", name)
    text = io.TextIOWrapper(file, found, "replace", newline="")
    for line in chain([next(text, "").removeprefix(_MARK)], text):
        if _UNDECODED in line:
            notes.add(Topic.ENCODING, f"lines with what is no {found}, replaced by �", name)
        yield line


def _decoded_by_line(
    file: io.BufferedReader, sample: bytes, name: str, notes: Notes
) -> Iterator[str]:
    """Take each line that is no UTF-8 for Windows-1252 as a whole."""
    if sample.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    old_mac = b"\r" in sample and b"\n" not in sample  # lines end with CR
    for line in file.read().split(b"\r") if old_mac else file:
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            notes.add(Topic.ENCODING, f"lines read as {FALLBACK} (--encoding names another)", name)
            text = line.decode(FALLBACK, "replace")
        yield text + "\n" if old_mac else text
