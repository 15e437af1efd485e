"""What is learned from: a query with what answers it and what does not, whatever the source."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from mmesh.content import Content, Image, Part


@dataclass(frozen=True, slots=True)
class Item:
    """A query or candidate, its picture still a file."""

    text: str = ""
    image: Path | None = None
    id: str = ""

    def content(self) -> Content:
        """Return its picture, then its text.

        Raises:
            OSError: the picture cannot be read.
        """
        parts: list[Part] = [] if self.image is None else [Image(self.image.read_bytes())]
        return Content((*parts, self.text) if self.text else tuple(parts))

    def spelt(self, root: Path) -> list[str]:
        """Return its text, picture and id, the picture as a path relative to `root` if it can."""
        image = self.image
        if image is not None and image.is_relative_to(root):
            image = image.relative_to(root)
        return [self.text, image.as_posix() if image else "", self.id]


@dataclass(frozen=True, slots=True)
class Example:
    """A query, candidates that answer it, and hard negatives."""

    id: str
    query: Item
    positives: tuple[Item, ...]
    """At least one; each epoch shows one of them."""
    negatives: tuple[Item, ...] = ()
    instruction: str = ""
    where: str = field(default="", compare=False)
    """File and line."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one step shows of an example."""

    example: Example
    positive: Item
    negatives: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """An item with its content read; `keys` are equal for what is the same."""

    item: Item
    content: Content = field(repr=False)
    keys: frozenset[str] = field(repr=False)

    @classmethod
    def of(cls, item: Item) -> Told:
        """Read an item.

        Raises:
            OSError: its picture cannot be read.
        """
        content = item.content()
        keys = {content.digest().hex()}
        keys |= {f"id:{item.id}"} if item.id else set()
        keys |= {f"path:{item.image}"} if item.image else set()
        # Pictures alone count as well: the same picture under another caption answers as well.
        keys |= {hashlib.sha256(image.data).hexdigest() for image in content.images}
        return cls(item, content, frozenset(keys))


def known_answers(example: Example, positive: Told) -> frozenset[str]:
    """Return the keys of all that is known to answer an example."""
    ids = {f"id:{item.id}" for item in example.positives if item.id}
    ids |= {f"path:{item.image}" for item in example.positives if item.image}
    texts = {
        Content.of(item.text).digest().hex()
        for item in example.positives
        if item.text and item.image is None
    }
    return positive.keys | ids | texts
