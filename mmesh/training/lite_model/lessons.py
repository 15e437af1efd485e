"""Pictures and their names as rows for training; names and vectors as shipped lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mmesh.content import Role
from mmesh.models.encoders.lite import artefacts
from mmesh.models.encoders.lite.image import ImageTower, Names
from mmesh.models.encoders.lite.model import TEXT_SHARE
from mmesh.models.encoders.lite.text import TextTower, unit
from mmesh.training.lite_model.features import Features, embed_texts, vectors
from mmesh.training.lite_model.head import Lessons
from mmesh.training.lite_model.outputs import save_arrays
from mmesh.training.lite_model.pictures import Picture, normalised
from mmesh.training.lite_model.splits import digest

LONGEST_NAME = 40
CALIBRATION_TEXTS = 256
CALIBRATION_PICTURES = 128


def lessons(pictures: Sequence[Picture], features: Features, tower: TextTower) -> Lessons:
    """Return one row per picture, each named in three ways."""
    rows = features.rows(pictures)
    ways = [naming(picture) for picture in pictures]
    flat = embed_texts(tower, [text for texts in ways for text in texts])
    texts = flat.reshape(len(pictures), -1, flat.shape[1])
    return Lessons(features.features[rows], features.mirrored[rows], texts)


def naming(picture: Picture) -> tuple[str, ...]:
    """Return the texts that a picture is shown with; its title is two thirds of them."""
    return picture.title, picture.title, ", ".join([picture.title, *picture.tags])


def write_vocabulary(
    out: Path, classes: Names, pictures: Iterable[Picture], tower: TextTower
) -> None:
    """Write the names that a picture can be given: classes, and titles that were trained on."""
    titles = [" ".join(picture.title.split()) for picture in pictures]
    usable = [title for title in titles if is_name(title)]
    names = list({normalised(name): name for name in (*usable, *classes.names)}.values())
    vectors = embed_texts(tower, names).astype(np.float16)
    save_arrays(out / artefacts.VOCABULARY, names=np.array(names), vectors=vectors)


def is_name(title: str) -> bool:
    """Tell whether a title can stand for what a picture shows: short, and words only."""
    words = title.replace("-", " ").replace("'", "").split()
    return len(title) <= LONGEST_NAME and 0 < len(words) <= 4 and all(w.isalpha() for w in words)


def write_calibration(
    out: Path, pictures: Sequence[Picture], features: Features, text: TextTower, image: ImageTower
) -> None:
    """Write the reference pool: titles and pictures that were trained on, chosen by hash.

    Row i shows thing i in each modality; the titles after the last picture stand alone. They belong
    to no collection that is measured: titles of the tests are never trained on.
    """
    ordered = sorted(pictures, key=lambda picture: digest(f"calibration {picture.key}"))
    by_title = {normalised(picture.title): picture for picture in reversed(ordered)}
    named = [picture for picture in ordered if by_title[normalised(picture.title)] is picture]
    shown = named[:CALIBRATION_PICTURES]
    texts = embed_texts(text, [picture.title for picture in named[:CALIBRATION_TEXTS]])
    rows = features.rows(shown)
    images = vectors(features, rows, image)
    share = np.float32(TEXT_SHARE[Role.QUERY])
    tags = embed_texts(text, [", ".join(p.tags) or p.title for p in shown])
    both = unit(share * tags + (1 - share) * images)
    halves = {"text": texts, "image": images, "image_text": both}
    stored = {name: values.astype(np.float16) for name, values in halves.items()}
    save_arrays(out / artefacts.CALIBRATION, **stored)
