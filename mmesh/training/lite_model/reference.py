"""The reference pool of `mmesh/models/reference.py`: the same things as texts and as pictures.

`python -m mmesh.training.lite_model.reference WORK` writes it anew: Noto's emoji of 128 things,
chosen by hash among those that `lite` may know.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

from mmesh.models import reference
from mmesh.training.lite_model import pictures, sources
from mmesh.training.lite_model.pictures import Picture, concept_of
from mmesh.training.lite_model.splits import digest, is_held_out

GROUPS = frozenset((3, 4, 5, 6, 7))
"""Animals and nature, food and drink, travel and places, activities, objects."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


def chosen(work: Path) -> list[Picture]:
    """Return the pictures in the order of a hash.

    Names may share words, as those of a collection do: they are what makes texts near.
    """
    base = sources.folder(sources.EMOJIBASE, work) / "package" / "en"
    rows: list[dict[str, Any]] = json.loads((base / "data.json").read_text("utf-8"))
    things = {concept_of(row["hexcode"]) for row in rows if row.get("group") in GROUPS}
    known = [
        picture
        for picture in pictures.emoji(sources.GOOGLE, "google", work)
        if picture.concept in things and not is_held_out(picture.concept)
    ]
    return sorted(known, key=lambda one: digest(f"reference {one.concept}"))[: reference.COUNT]


def write(work: Path) -> None:
    """Write the archive; the same pictures make the same bytes."""
    with zipfile.ZipFile(reference.ARCHIVE, "w") as archive:
        for picture in chosen(work):
            name = zipfile.ZipInfo(f"{picture.title}.png", _EPOCH)
            archive.writestr(name, picture.path.read_bytes())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
