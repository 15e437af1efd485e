"""The named pictures of the packages: clip art and emoji, as files with texts."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmesh.errors import InvalidImage
from mmesh.models import images
from mmesh.training.lite_model import sources

CLIPART_ROOT = "usr/share/openclipart"
# Series of near-equal shapes, signs, cards and user-interface icons; the rest shows objects.
SERIES = (
    "shapes/",
    "signs_and_symbols/",
    "special/",
    "recreation/games/cards/",
    "computer/icons/",
    "computer/buttons/",
    "computer/folders/",
    "transportation/aiga-symbols/",
    "transportation/roadsigns/",
    "logos/",
)
# Titles that name a collection, or nothing, and so nothing that a picture shows.
PLACEHOLDERS = frozenset(
    {
        "blueberry iconset",
        "gold theme",
        "gramastar",
        "lemon svg theme",
        "no name",
        "plastik icon theme",
        "r16 sibmission",
        "svg gradient collection by alan horkan 2004",
        "title",
        "unnamed",
        "untitled",
        "various cliparts",
    }
)
PLACEHOLDER_START = "part of the flat icon collection"
USELESS_TAGS = frozenset(
    {"unsorted", "clip art", "clipart", "svg", "image", "media", "hash", "png"}
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture file and what it is called."""

    key: str
    """Unique among all pictures; tells the origin."""
    path: Path
    title: str
    tags: tuple[str, ...]
    concept: str = ""
    """The code point of an emoji without variation selectors; empty for clip art."""
    is_object: bool = False
    """Clip art that shows an object, not one of a series."""


def normalised(text: str) -> str:
    """Return the words of a text in lower case, with single spaces.

    >>> normalised(" Beer-Mug,  2 ")
    'beer mug 2'
    """
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def bare(title: str) -> str:
    """Return the words of a title without remarks in brackets, credits and counters.

    >>> bare("Clipart by A. Smith - Hamburger (B and W) 02.svg")
    'hamburger'
    """
    title = re.sub(r"\(.*?\)|\[.*?\]|\.(svg|png|jpg)\b", " ", title, flags=re.IGNORECASE)
    title = re.sub(r"^clip ?art by .*? - ", " ", title, flags=re.IGNORECASE)
    return " ".join(re.findall(r"[^\W\d_]+", title.casefold()))


def names_something(title: str) -> bool:
    """Tell whether a title is one, and not a placeholder."""
    words = normalised(title)
    return bool(words) and words not in PLACEHOLDERS and not words.startswith(PLACEHOLDER_START)


def clipart(work: Path) -> list[Picture]:
    """Return every clip art that is not too large and has a usable title, ordered by path."""
    pngs = sources.folder(sources.CLIPART_PNG, work) / CLIPART_ROOT / "png"
    svgs = sources.folder(sources.CLIPART_SVG, work) / CLIPART_ROOT / "svg"
    found = [_clipart(path, pngs, svgs) for path in sorted(pngs.rglob("*.png"))]
    return [picture for picture in found if picture is not None]


def _is_small(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(64)
    try:
        images.read_size(start, path.name)
    except InvalidImage:
        return False
    return True


def _clipart(path: Path, pngs: Path, svgs: Path) -> Picture | None:
    place = path.relative_to(pngs).as_posix()
    drawing = (svgs / place).with_suffix(".svg")
    if not drawing.is_file() or not _is_small(path):
        return None
    work = _between(drawing.read_text("utf-8", "replace"), r"<cc:Work\b.*?>(.*?)</cc:Work>")
    title = _plain(_between(work, r"<dc:title>(.*?)</dc:title>"))
    if not names_something(title):
        return None
    subjects = re.findall(r"<rdf:li>(.*?)</rdf:li>", work, re.DOTALL)
    tags = [*(_plain(subject) for subject in subjects), *_places(place)]
    kept = [tag for tag in dict.fromkeys(tags) if normalised(tag) not in USELESS_TAGS | {""}]
    is_object = not place.startswith(SERIES)
    return Picture(f"clipart/{place}", path, title, tuple(kept[:12]), is_object=is_object)


def _between(text: str, pattern: str) -> str:
    match = re.search(pattern, text, re.DOTALL)
    return match.group(1) if match else ""


def _plain(markup: str) -> str:
    text = html.unescape(re.sub(r"<[^>]*>", " ", markup)).replace("_", " ")
    return " ".join(text.split())


def _places(place: str) -> list[str]:
    return [name.replace("_", " ") for name in place.split("/")[:-1]]


def concept_of(code: str) -> str:
    """Return a code point sequence in one spelling: upper case, without variation selectors."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def emoji_names(work: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return label and tags by concept, of emoji without skin tone."""
    base = sources.folder(sources.EMOJIBASE, work) / "package" / "en"
    rows: list[dict[str, Any]] = json.loads((base / "data.json").read_text("utf-8"))
    return {concept_of(r["hexcode"]): (r["label"], tuple(r.get("tags") or ())) for r in rows}


def is_skin_tone(concept: str) -> bool:
    """Tell whether a concept is a skin tone by itself, or has one.

    >>> [is_skin_tone(concept) for concept in ("1F3FB", "1F44B-1F3FF", "1F3F4")]
    [True, True, False]
    """
    return any("1F3FB" <= part <= "1F3FF" and len(part) == 5 for part in concept.split("-"))


def emoji(source: sources.Source, vendor: str, work: Path) -> list[Picture]:
    """Return the emoji of one vendor that have a picture and a name, without skin tones."""
    package = sources.folder(source, work) / "package"
    rows: list[dict[str, Any]] = json.loads((package / "emoji.json").read_text("utf-8"))
    names = emoji_names(work)
    found = []
    for row in rows:
        concept = concept_of(row["unified"])
        path = package / "img" / vendor / "64" / row["image"]
        if path.is_file() and not is_skin_tone(concept):
            label, tags = names.get(concept, (row["name"].lower(), ()))
            found.append(Picture(f"{vendor}/{concept}", path, label, tags, concept))
    return found


def openmoji(work: Path) -> list[Picture]:
    """Return the drawings of OpenMoji without skin tones, its own additions included."""
    package = sources.folder(sources.OPENMOJI, work) / "package"
    rows: list[dict[str, Any]] = json.loads((package / "data" / "openmoji.json").read_text("utf-8"))
    names = emoji_names(work)
    found = []
    for row in rows:
        concept = concept_of(row["hexcode"])
        path = package / "color" / "svg" / f"{row['hexcode']}.svg"
        if row["skintone"] or not path.is_file():
            continue
        own = [tag.strip() for tag in f"{row['tags']},{row['openmoji_tags']}".split(",")]
        label, tags = names.get(concept, (row["annotation"], ()))
        merged = dict.fromkeys(tag for tag in (*tags, *own) if tag)
        found.append(Picture(f"openmoji/{concept}", path, label, tuple(merged), concept))
    return found
