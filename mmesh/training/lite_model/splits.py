"""What is trained on, what decides settings, and what is only measured; all by hash.

Clip art: titles of object pictures are taken in the order of the SHA-256 of their normalised form.
Each title joins `test` with all its pictures if they still fit into 1,820 pictures, else `dev` if
they fit into 225, else `train`. Pictures of series are trained on where their title is not one of
`test` or `dev`. Of pictures to train on, those nearly equal to a held-out picture are removed
(cosine of features at least 0.995). Once `dev` has decided the settings, it is trained on too.

`strict` is the part of `test` whose titles no training picture has, emoji included, once remarks
in brackets, credits and counters are left out. "Hamburger 2" and "Hamburger (B and W)" are
different titles for `test`, but not for `strict`.

Emoji: a concept is held out where the SHA-256 of its code point, as a fraction, is below 0.2.
Nothing called like a held-out concept is trained on, whatever its origin. Test pictures are those
of a vendor that is never trained on: `unseen` shows held-out concepts, `seen` the others.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmesh.training.lite_model.pictures import Picture, bare, normalised

TEST_PICTURES = 1820
DEV_PICTURES = 225
# More pictures of one title teach nothing new.
TRAIN_PICTURES_PER_TITLE = 12
HELD_OUT_SHARE = 0.2
NEAR_DUPLICATE = 0.995
# Words that do not tell emoji and clip art of one concept apart: "flag: Spain", "Flag of Spain".
FILLERS = frozenset({"a", "an", "the", "of", "flag"})


@dataclass(frozen=True, slots=True)
class Splits:
    """Disjoint sets of pictures."""

    train: tuple[Picture, ...]
    """Offered for training: some are called like a held-out emoji, or are near duplicates."""
    dev: tuple[Picture, ...]
    test: tuple[Picture, ...]
    seen: tuple[Picture, ...]
    unseen: tuple[Picture, ...]


def digest(text: str) -> str:
    """Return the SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def is_held_out(concept: str) -> bool:
    """Tell whether no picture of an emoji may be trained on.

    >>> is_held_out("1F600") == (int(digest("1F600")[:8], 16) / 16**8 < 0.2)
    True
    """
    return int(digest(concept)[:8], 16) / 16**8 < HELD_OUT_SHARE


def words_of(title: str) -> frozenset[str]:
    """Return what a title names, whatever the order of its words."""
    return frozenset(normalised(title).split()) - FILLERS


def split(
    clipart: Sequence[Picture], train_emoji: Sequence[Picture], test_emoji: Sequence[Picture]
) -> Splits:
    """Return the sets, before near duplicates are removed."""
    shares = _clipart_shares([picture for picture in clipart if picture.is_object])
    taken = {normalised(picture.title) for name in ("test", "dev") for picture in shares[name]}
    unseen = tuple(picture for picture in test_emoji if is_held_out(picture.concept))
    free = [picture for picture in clipart if normalised(picture.title) not in taken]
    shown = [picture for picture in train_emoji if not is_held_out(picture.concept)]
    seen = tuple(picture for picture in test_emoji if not is_held_out(picture.concept))
    dev, test = tuple(shares["dev"]), tuple(shares["test"])
    return Splits((*free, *shown), dev, test, seen, unseen)


def without_names(offered: Iterable[Picture], secret: Iterable[Picture]) -> list[Picture]:
    """Return the pictures that are not called like a secret one."""
    words = {words_of(picture.title) for picture in secret}
    return [picture for picture in offered if words_of(picture.title) not in words]


def capped(train: Sequence[Picture]) -> list[Picture]:
    """Return at most 12 pictures of each title, chosen by hash, in the order of `train`."""
    kept: set[str] = set()
    counts: Counter[str] = Counter()
    for picture in sorted(train, key=lambda picture: digest(picture.key)):
        title = normalised(picture.title)
        counts[title] += 1
        kept |= {picture.key} if counts[title] <= TRAIN_PICTURES_PER_TITLE else set()
    return [picture for picture in train if picture.key in kept]


def _clipart_shares(objects: Iterable[Picture]) -> dict[str, list[Picture]]:
    by_title = defaultdict(list)
    for picture in objects:
        by_title[normalised(picture.title)].append(picture)
    shares: dict[str, list[Picture]] = {"test": [], "dev": [], "train": []}
    for title in sorted(by_title, key=digest):
        group = by_title[title]
        fits_test = len(shares["test"]) + len(group) <= TEST_PICTURES
        fits_dev = len(shares["dev"]) + len(group) <= DEV_PICTURES
        shares["test" if fits_test else "dev" if fits_dev else "train"] += group
    return shares


def strict_rows(test: Sequence[Picture], train: Iterable[Picture]) -> list[int]:
    """Return the places in `test` of pictures whose bare title is not trained on."""
    known = {bare(picture.title) for picture in train}
    return [place for place, picture in enumerate(test) if bare(picture.title) not in known]


def near_duplicates(train: NDArray[np.float32], held_out: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell for each row of `train` whether a row of `held_out` is nearly equal to it."""
    rows = train / np.linalg.norm(train, axis=1, keepdims=True)
    others = held_out / np.linalg.norm(held_out, axis=1, keepdims=True)
    blocks = [(block @ others.T).max(axis=1) for block in np.array_split(rows, 16)]
    near: NDArray[np.bool_] = np.concatenate(blocks) >= NEAR_DUPLICATE
    return near
