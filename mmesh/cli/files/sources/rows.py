"""Rows as candidates: the same for all kinds of files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmesh.candidates import Candidate
from mmesh.cli.files.sources.attribute_values import EARLIER, AttributeReader, ColumnRules
from mmesh.cli.files.sources.image_cells import ImageCell, image_cells
from mmesh.cli.files.sources.items import (
    Item,
    Unreadable,
    reason_of,
    source_name,
    stamp_of,
)
from mmesh.cli.files.sources.notes import Notes, Topic
from mmesh.cli.files.sources.pictures import image_of
from mmesh.cli.files.sources.row_shape import (
    OURS,
    VECTOR,
    attributes_of,
    canonical,
    id_of,
    listed,
    text_of,
)
from mmesh.content import Attributes, Content, Part
from mmesh.values.ids import id_of_path

NO_RULES = ColumnRules({})


@dataclass(frozen=True, slots=True)
class _Read:
    """A row of the one shape; its pictures are not read yet."""

    images: tuple[ImageCell, ...]
    text: str
    attributes: Attributes

    def content(self, notes: Notes) -> Content:
        """Read the pictures; then comes the text."""
        parts: list[Part] = [image_of(cell.read(), cell.name, notes) for cell in self.images]
        return Content((*parts, self.text) if self.text else tuple(parts))


class RowReader:
    """Makes items of the rows of a file."""

    def __init__(
        self, source: Path, rules: ColumnRules, notes: Notes, *, allow_outside: bool = False
    ) -> None:
        self._source, self._rules, self._notes = source, rules, notes
        self._name, self._file = source_name(source), id_of_path(source.name)
        self._attributes = AttributeReader(rules, notes)
        self._allow_outside = allow_outside
        self._seen: set[str] = set()

    @property
    def unknown_columns(self) -> set[str]:
        """Columns that the rules name and that no row had."""
        named = self._rules.types.keys() | self._rules.ignore | (self._rules.columns or set())
        return set(named) - self._seen

    def item_of(self, row: Mapping[str, Any] | Unreadable, number: int) -> Item | Unreadable:
        """Return the item of a row, or why it is none; its number is its id when it has none."""
        name, known = f"{self._file}:{number}", False
        if isinstance(row, Unreadable):
            return Unreadable(name, row.reason, source=self._name)
        try:
            self._seen.update(map(str, row))
            kept = {str(k): v for k, v in row.items() if str(k) not in self._rules.ignore}
            whole = canonical(kept, self._note_earlier)
            given = id_of(whole)
            name, known = given or name, True
            return self._item(whole, name)
        except Exception as error:  # whatever a row does is a refusal of that row
            reason = f"{self._file}, row {number}: {reason_of(error)}"
            return Unreadable(name, reason, hides=not known, source=self._name)

    def _item(self, row: dict[str, Any], name: str) -> Item:
        read = self._read(row)
        images = [cell.stamp().hex() for cell in read.images]
        stamp = stamp_of(name, read.text, images, sorted(read.attributes.items()))
        return Item(
            name,
            stamp,
            lambda: Candidate(name, read.content(self._notes), read.attributes),
            self._name,
        )

    def _note_earlier(self, name: str) -> None:
        if name in OURS or self._rules.takes(name):
            self._notes.add(Topic.LEFT_OUT, EARLIER, name)

    def _read(self, row: dict[str, Any]) -> _Read:
        folder = self._source.parent
        if isinstance(row.get(VECTOR), list | tuple):
            row = {column: value for column, value in row.items() if column != VECTOR}
            self._notes.add(Topic.LEFT_OUT, "vectors (--vectors reads them)", VECTOR)
        values = {
            k: v for k, v in attributes_of(row, self._note_earlier).items() if self._rules.takes(k)
        }
        cells = tuple(image_cells(row.get("image"), folder, allow_outside=self._allow_outside))
        text = text_of(row)
        if not cells and not text:
            raise ValueError(f"has neither text nor image; its columns are {listed([*row])}")
        return _Read(cells, text, self._attributes.read(values))


def candidate_of(row: Mapping[str, Any], name: str, folder: Path) -> Candidate:
    """Return the candidate of a row; `name` is its id when it has none.

    Raises:
        ValueError: it has neither text nor image, or a value of another shape.
        OSError: its image cannot be read.
    """
    whole = canonical(row)
    content = content_of(whole, folder)
    attributes = AttributeReader(NO_RULES, Notes()).read(attributes_of(whole))
    return Candidate(id_of(whole) or name, content, attributes)


def content_of(row: Mapping[str, Any], folder: Path) -> Content:
    """Return the content of a row: its image, a path relative to `folder`, then its text.

    Raises:
        ValueError, OSError: see `candidate_of`.
    """
    cells = tuple(image_cells(row.get("image"), folder, allow_outside=True))
    read = _Read(cells, text_of(row), {})
    if not cells and not read.text:
        raise ValueError(f"has neither text nor image; its columns are {listed([*row])}")
    return read.content(Notes())
