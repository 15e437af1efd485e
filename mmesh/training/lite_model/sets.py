"""The sets of pictures, read from their packages; needs no torch."""

from __future__ import annotations

from pathlib import Path

from mmesh.training.lite_model import pictures, sources, splits
from mmesh.training.lite_model.splits import Splits


def read_splits(work: Path) -> Splits:
    """Return the sets of pictures; the packages are fetched at first use."""
    google = pictures.emoji(sources.GOOGLE, "google", work)
    twitter = pictures.emoji(sources.TWITTER, "twitter", work)
    emoji = [*google, *pictures.openmoji(work)]
    return splits.split(pictures.clipart(work), emoji, twitter)
