"""What the pools of `mixed_pool.py` are made of: pictures and texts of packages, with queries.

Nothing here was trained on by `lite`, except that its picture head knows the concepts of some of
the emoji from other vendors. Every source is split in two by a hash: one half is for the pools that
the merge was chosen on, the other for those that report on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from debian import programs, with_usable_synopsis

from mmesh.training.lite_model import pictures, sources
from mmesh.training.lite_model.pictures import normalised
from mmesh.training.lite_model.sets import read_splits
from mmesh.training.lite_model.sources import Source
from mmesh.training.lite_model.splits import digest

FACEBOOK = Source(
    "npm",
    "emoji-datasource-facebook",
    "16.0.0",
    "017038cf5a4e7fcf03dd9133cbed43d4c281c4b3ce7b927c7160261b92b8821e",
    "MIT; pictures (c) Meta, not redistributed",
    "emoji of a vendor never trained on",
)
LUCIDE = Source(
    "npm",
    "lucide-static",
    "1.62.0",
    "386f9080c440d6f5049cefe3456ae8357f7a0c7f76e59670cd1cb83bc7050a44",
    "ISC",
    "icons with tags",
)
TABLER = Source(
    "npm",
    "@tabler/icons",
    "3.52.0",
    "626620c7d42afd2f294fba167ce4653b5cb946336d186b4991c70b700e5616af",
    "MIT",
    "icons with tags",
)
STAMPS = Source(
    "apt",
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    "GPL-2+ and public domain",
    "photographs of things on white, with captions",
)
WORDNET = Source(
    "apt",
    "wordnet-base",
    "1:3.0-37",
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    "WordNet licence",
    "nouns and their glosses",
)
MOST_TAGS = 6
LEAST_GLOSS = 30
_NO_THINGS = ("symbols/", "cartoon", "flags", "plastic")
"""Parts of paths of stamps that are no photographs of things."""
_NAMES = ("15", "18", "21", "28")
"""Lexicographer files of WordNet: places, persons, possessions, times."""


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate, a text or the path of a picture, and a query that seeks it."""

    thing: str
    """What it is about, the kind and a name; no pool has two rows about one thing."""
    content: str | Path
    query: str

    @property
    def key(self) -> str:
        """The name of the thing in its source."""
        return self.thing.partition(" ")[2]


@cache
def rows_of(source: str, work: Path) -> tuple[Row, ...]:
    """Return all rows of a source."""
    return tuple(_READERS[source](work))


def half_of(source: str, work: Path, side: int, count: int) -> list[Row]:
    """Return up to `count` rows of one half (0 or 1) in an order by hash."""
    mine = [
        row for row in rows_of(source, work) if int(digest(f"half {row.key}")[0], 16) % 2 == side
    ]
    return sorted(mine, key=lambda row: digest(f"pick {row.key}"))[:count]


def _photographs(work: Path) -> Iterable[Row]:
    root = sources.folder(STAMPS, work / "packages") / "usr/share/tuxpaint/stamps"
    for path in sorted(root.rglob("*.png")):
        place, caption = path.relative_to(root).as_posix(), path.with_suffix(".txt")
        if caption.is_file() and not any(part in place for part in _NO_THINGS):
            first = caption.read_text("utf-8", "replace").partition("\n")[0].strip()
            if first:
                yield Row(f"stamp {place}", path, first)


def _drawings(work: Path) -> Iterable[Row]:
    for picture in read_splits(work / "packages").test:
        yield Row(f"drawing {picture.key}", picture.path, picture.title)


def _captions(work: Path) -> Iterable[Row]:
    """Return titles of drawings, sought by the words of their tags that the title has not."""
    for picture in read_splits(work / "packages").test:
        tags = [tag for tag in picture.tags if normalised(tag) not in normalised(picture.title)]
        if len(tags) >= 2:
            yield Row(f"drawing {picture.key}", picture.title, ", ".join(tags[:MOST_TAGS]))


def _twitter(work: Path) -> Iterable[Row]:
    splits = read_splits(work / "packages")
    for picture in (*splits.unseen, *splits.seen):
        yield Row(f"emoji {picture.concept}", picture.path, picture.title)


def _unseen(work: Path) -> Iterable[Row]:
    for picture in read_splits(work / "packages").unseen:
        yield Row(f"emoji {picture.concept}", picture.path, picture.title)


def _facebook(work: Path) -> Iterable[Row]:
    for picture in pictures.emoji(FACEBOOK, "facebook", work / "packages"):
        yield Row(f"emoji {picture.concept}", picture.path, picture.title)


def _labels(work: Path) -> Iterable[Row]:
    for concept, (label, tags) in pictures.emoji_names(work / "packages").items():
        if len(set(tags) - {label}) >= 2:
            yield Row(f"label {concept}", label, ", ".join(tags))


def _tabler(work: Path) -> Iterable[Row]:
    package = sources.folder(TABLER, work / "packages") / "package"
    icons: dict[str, Any] = json.loads((package / "icons.json").read_text("utf-8"))
    tags = {
        name: icon["tags"]
        for name, icon in icons.items()
        if icon["category"] not in ("Brand", "Text", "Letters", "Numbers")
    }
    return _icons("tabler", package / "icons/outline", tags)


def _lucide(work: Path) -> Iterable[Row]:
    package = sources.folder(LUCIDE, work / "packages") / "package"
    tags = json.loads((package / "tags.json").read_text("utf-8"))
    return _icons("lucide", package / "icons", tags)


def _icons(name: str, folder: Path, tags: dict[str, list[Any]]) -> Iterable[Row]:
    for icon, words in tags.items():
        path = folder / f"{icon}.svg"
        if words and path.is_file():
            yield Row(f"{name} {icon}", path, ", ".join(map(str, words[:MOST_TAGS])))


def _synopses(work: Path) -> Iterable[Row]:
    for package in with_usable_synopsis(programs(work)):
        yield Row(f"program {package.name}", package.synopsis, package.description)


def _descriptions(work: Path) -> Iterable[Row]:
    for package in with_usable_synopsis(programs(work)):
        yield Row(f"program {package.name}", package.description, package.synopsis)


def _glosses(work: Path) -> Iterable[Row]:
    for number, words, gloss in _nouns(work):
        yield Row(f"noun {number}", gloss, words)


def _words(work: Path) -> Iterable[Row]:
    for number, words, gloss in _nouns(work):
        yield Row(f"noun {number}", words, gloss)


def _nouns(work: Path) -> Iterable[tuple[str, str, str]]:
    """Return number, words and gloss of common nouns that have two words for one thing."""
    folder = sources.folder(WORDNET, work / "packages") / "usr/share/wordnet"
    for line in (folder / "data.noun").read_text("utf-8").splitlines():
        head, _, rest = line.partition(" | ")
        fields = head.split()
        if line.startswith(" ") or fields[1] in _NAMES:
            continue
        words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
        gloss = rest.split('; "')[0].strip()
        if len(words) >= 2 and words[0][0].islower() and len(gloss) >= LEAST_GLOSS:
            yield fields[0], ", ".join(words[:4]), gloss


_READERS: dict[str, Callable[[Path], Iterable[Row]]] = {
    "photographs": _photographs,
    "drawings": _drawings,
    "captions": _captions,
    "twitter": _twitter,
    "unseen emoji": _unseen,
    "facebook": _facebook,
    "labels": _labels,
    "tabler": _tabler,
    "lucide": _lucide,
    "synopses": _synopses,
    "descriptions": _descriptions,
    "glosses": _glosses,
    "words": _words,
}
"""Pictures: photographs to facebook but captions, tabler, lucide. The others are texts."""
