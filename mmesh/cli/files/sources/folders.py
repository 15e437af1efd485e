"""Folders of pictures: which files are read, and why the others are passed over."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from mmesh.candidates import Candidate
from mmesh.cli.files.sources.attribute_values import ColumnRules
from mmesh.cli.files.sources.items import (
    Given,
    Item,
    PassedOver,
    Unreadable,
    bytes_of,
    reason_of,
    source_name,
    stamp_of,
)
from mmesh.cli.files.sources.notes import Notes, Topic
from mmesh.cli.files.sources.pictures import (
    HEAD,
    MAX_FILE_BYTES,
    SUFFIXES,
    format_of,
    picture_of,
    what_is_missing,
)
from mmesh.cli.files.sources.text_lines import text_of
from mmesh.content import MAX_TEXT_BYTES, Content, Part
from mmesh.values.ids import id_of_path

ROW_FILES = frozenset(
    (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab", ".parquet", ".pq", ".arrow",
     ".feather", ".ipc", ".gz")
)  # fmt: skip
THUMBNAILS = frozenset(("@eadir", ".thumbnails", ".thumbs", ".@__thumb", "thumbnails.db"))
LEFTOVERS = frozenset(
    ("__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "#recycle", "@recycle", "$recycle.bin",
     "lost+found", "system volume information")
)  # fmt: skip
FACTS = ("path", "width", "height", "taken")
"""Attributes of pictures, as far as they are known."""
_CAPTION = ".txt"
MAX_CAPTION_BYTES = 4 * MAX_TEXT_BYTES
"""In whatever encoding; what does not fit into a candidate is refused by the mesh."""
_TIFF_READER = 2
"""Raised when TIFF files give other candidates than before, so that they are read again."""
_NO_PICTURE, _EMPTY = "files of other formats", "empty"
_BROKEN = (errno.ENOENT, errno.ELOOP)


@dataclass(frozen=True, slots=True)
class FolderRules:
    """Which files of a folder are read."""

    exclude: tuple[str, ...] = ()
    """Globs of relative paths, or of names of files and folders, that are left out."""
    follow_links: bool = False
    """Go into folders that are links."""

    def leaves_out(self, name: str) -> bool:
        """Tell whether a relative path is excluded."""
        last = name.rpartition("/")[2]
        return any(
            fnmatch(name, glob.rstrip("/")) or fnmatch(last, glob.rstrip("/"))
            for glob in self.exclude
        )


@dataclass(frozen=True, slots=True)
class Found:
    """A picture of a folder."""

    name: str
    """Its path in the folder, with slashes."""
    path: Path
    caption: Path | None


@dataclass(frozen=True, slots=True)
class Lacking:
    """A picture that cannot be read for now: without a reader, empty, or at the end of a link."""

    name: str


@dataclass(frozen=True, slots=True)
class Closed:
    """A file or folder that cannot be looked into."""

    name: str
    reason: str


@dataclass(slots=True)
class _Listing:
    """The files of one folder."""

    pictures: list[os.DirEntry[str]] = field(default_factory=list)
    texts: dict[str, os.DirEntry[str]] = field(default_factory=dict)
    """By name."""
    folders: list[os.DirEntry[str]] = field(default_factory=list)
    closed: list[Closed] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)


class Folder:
    """A folder of pictures and all below it."""

    def __init__(self, root: Path, rules: FolderRules, notes: Notes) -> None:
        self._root, self._rules, self._notes = root, rules, notes
        self._entered: set[tuple[int, int]] = set()

    def pictures(self) -> Iterator[Found | Lacking | Closed]:
        """Yield the pictures by name; the notes say what is passed over.

        Raises:
            OSError: the folder itself cannot be read.
        """
        self._entered = {_identity(self._root.stat())}
        listing = self._listing(self._root, "")
        yield from self._files_of(listing, "")
        waiting = [(entry, entry.name) for entry in reversed(listing.folders)]
        while waiting:  # a stack, since folders may be deeper than calls
            folder, name = waiting.pop()
            prefix = f"{name}/"
            try:
                listing = self._listing(Path(folder.path), prefix)
            except OSError as error:
                yield Closed(name, reason_of(error))
                continue
            yield from self._files_of(listing, prefix)
            waiting += [(entry, prefix + entry.name) for entry in reversed(listing.folders)]

    def _listing(self, folder: Path, prefix: str) -> _Listing:
        listing = _Listing()
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                self._sort_in(entry, prefix + entry.name, listing)
        return listing

    def _files_of(self, listing: _Listing, prefix: str) -> Iterator[Found | Lacking | Closed]:
        used: set[str] = set()
        in_lower = {name.lower(): text for name, text in listing.texts.items()}
        for entry in listing.pictures:
            text = _caption_of(entry.name, listing.texts, in_lower)
            used |= {text.name} if text else set()
            caption = Path(text.path) if text else None
            yield Found(prefix + entry.name, Path(entry.path), caption)
        for text in listing.texts.values():
            if text.name not in used:
                self._pass_over("texts without a picture", prefix + text.name)
        yield from listing.closed
        yield from map(Lacking, listing.lacking)

    def _sort_in(self, entry: os.DirEntry[str], name: str, listing: _Listing) -> None:
        """Put an entry where it belongs, or note why it is passed over."""
        try:
            found = entry.stat()
        except OSError as error:
            if not entry.is_symlink() or error.errno not in _BROKEN:
                listing.closed.append(Closed(name, reason_of(error)))
            elif self._rules.follow_links and Path(name).suffix.lower() not in SUFFIXES:
                listing.closed.append(Closed(name, "is a link to what is not there"))  # a folder?
            else:
                self._pass_over("broken links", name)
                listing.lacking.append(name)
            return
        is_folder = stat.S_ISDIR(found.st_mode)
        if reason := self._reason(entry, name, found):
            where = _suffix_of(entry.name) if reason == _NO_PICTURE else name
            listing.lacking += [name] if reason == _EMPTY else []
            self._pass_over(reason, where, _files_in(entry) if is_folder else 1)
        elif is_folder:
            self._entered.add(_identity(found))
            listing.folders.append(entry)
        elif entry.name.lower().endswith(_CAPTION):
            listing.texts[entry.name] = entry
        elif missing := what_is_missing(SUFFIXES.get(Path(entry.name).suffix.lower(), "")):
            self._pass_over(missing, name)
            listing.lacking.append(name)
        else:
            listing.pictures.append(entry)

    def _reason(self, entry: os.DirEntry[str], name: str, found: os.stat_result) -> str:
        """Return why an entry is passed over; empty when it is not."""
        lower = entry.name.lower()
        if self._rules.leaves_out(name):
            return "excluded"
        if lower in THUMBNAILS:
            return "thumbnails"
        if lower.startswith("._") or lower in LEFTOVERS:
            return "leftovers of systems"
        if lower.startswith("."):
            return "hidden"
        if stat.S_ISDIR(found.st_mode):
            return self._reason_for_folder(entry, found)
        if not stat.S_ISREG(found.st_mode):
            return "neither files nor folders"
        is_text = lower.endswith(_CAPTION)  # an empty one is no caption
        return "" if is_text else _reason_for_file(Path(entry.path), lower, found)

    def _reason_for_folder(self, entry: os.DirEntry[str], found: os.stat_result) -> str:
        if entry.is_symlink() and not self._rules.follow_links:
            return "folders that are links (--follow-links)"
        return "folders that were read already" if _identity(found) in self._entered else ""

    def _pass_over(self, reason: str, name: str, count: int = 1) -> None:
        self._notes.add(Topic.PASSED_OVER, reason, name, max(1, count))


def folder_items(
    root: Path, rules: FolderRules, columns: ColumnRules, notes: Notes
) -> Iterator[Given]:
    """Yield the pictures of a folder, each with its caption and with attributes of its file."""
    source = source_name(root)
    kept = [fact for fact in FACTS if columns.takes(fact)]
    for found in Folder(root, rules, notes).pictures():
        name = id_of_path(found.name)
        if isinstance(found, Lacking):
            yield PassedOver(name, source)
        elif isinstance(found, Closed):
            yield Unreadable(name, found.reason)
        else:
            make = partial(_read, found, name, columns, notes)
            yield Item(name, stamp_of(_stamp(found), kept), make, source)


def count_pictures(root: Path, rules: FolderRules) -> int:
    """Return how many pictures a folder has."""
    try:
        found = Folder(root, rules, Notes()).pictures()
        return sum(isinstance(one, Found) for one in found)
    except OSError:  # which is said when it is read
        return 0


def _read(found: Found, name: str, columns: ColumnRules, notes: Notes) -> Candidate:
    picture = picture_of(bytes_of(found.path, MAX_FILE_BYTES), name, notes)
    facts = {"path": name, **picture.facts}
    parts: list[Part] = [picture.image]
    if found.caption is not None:
        data = bytes_of(found.caption, MAX_CAPTION_BYTES)
        caption = text_of(data, id_of_path(found.caption.name), notes)
        parts += [caption] if caption.strip() else []
    kept = {fact: value for fact, value in facts.items() if columns.takes(fact)}
    return Candidate(name, Content(tuple(parts)), kept)


def _stamp(found: Found) -> bytes:
    stamps = []
    for path in (found.path, found.caption):
        try:
            at = path.stat() if path else None
        except OSError:
            at = None
        stamps.append(at and (at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino))
    reader = [_TIFF_READER] if SUFFIXES.get(found.path.suffix.lower()) == "TIFF" else []
    return stamp_of(id_of_path(found.name), stamps, *reader)


def _reason_for_file(path: Path, lower: str, found: os.stat_result) -> str:
    suffix = path.suffix.lower()
    if not found.st_size:
        return _EMPTY
    if suffix in ROW_FILES:
        return "files of rows (name them to read them)"
    if not suffix:
        return "" if _head_format(path) else _NO_PICTURE
    return "" if suffix in SUFFIXES else _NO_PICTURE


def _suffix_of(name: str) -> str:
    return Path(name).suffix.lower() or "without a suffix"


def _head_format(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return format_of(file.read(HEAD))
    except OSError:
        return ""


def _caption_of(
    name: str, texts: dict[str, os.DirEntry[str]], in_lower: dict[str, os.DirEntry[str]]
) -> os.DirEntry[str] | None:
    """Return the text of a picture: cat.jpg.txt, else cat.txt, if need be in another case."""
    for start in (name, name.rpartition(".")[0] or name):
        text = texts.get(start + _CAPTION) or in_lower.get(start.lower() + _CAPTION)
        if text is not None:
            return text
    return None


def _files_in(entry: os.DirEntry[str]) -> int:
    """Return how many files a folder has that is not read."""
    if entry.is_symlink():
        return 1
    count, waiting = 0, [entry.path]
    while waiting:  # as `os.walk` does from Python 3.12 on: before, it calls itself
        try:
            with os.scandir(waiting.pop()) as entries:
                for one in entries:
                    if one.is_dir(follow_symlinks=False):
                        waiting.append(one.path)
                    else:
                        count += 1
        except OSError:  # a folder that cannot be looked into
            continue
    return count


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
