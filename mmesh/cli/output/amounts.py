"""Amounts as people write them: 100M, 64 GiB, 3 hours, text=0.7,image=0.3."""

from __future__ import annotations

import re

import click

MOST = 10**18
_STEPS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_COUNT = re.compile(r"([\d_,]*\.?\d+)\s*([kmgbt]?)", re.IGNORECASE)
_SECONDS = (("days", 86_400), ("hours", 3_600), ("minutes", 60))


def count_of(text: str) -> int:
    """Return what a count such as 100M means.

    Raises:
        click.BadParameter: it is none.
    """
    found = _COUNT.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is no count such as 250000, 100M or 1B")
    count = float(found[1].replace(",", "").replace("_", "")) * _STEPS[found[2].lower()]
    if count > MOST:
        raise click.BadParameter(f"{text!r} is more than anybody counts")
    return round(count)


def shares_of(text: str) -> dict[str, float]:
    """Return shares by name, as in text=0.7,image=0.3.

    Raises:
        click.BadParameter: it is not of that form.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        return {name.strip(): float(share) for name, _, share in pairs}
    except ValueError:
        raise click.BadParameter(f"{text!r} is not of the form text=0.7,image=0.3") from None


def bytes_text(size: float) -> str:
    """Return a size in the unit that suits it."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.3g} TiB"


def duration_text(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    for unit, length in _SECONDS:
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"
