"""Scrapes: what processes export at one moment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException

import click

from mmesh.cli.commands.top.fetching import fetch

_OURS = ("mmesh_", "process_")
_AT_A_TIME = 16
Labels = frozenset[tuple[str, str]]
Series = Mapping[str, Mapping[Labels, float]]
"""Values by name and labels."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """What one process exported at a moment; `problem` says why there is nothing."""

    at: float
    series: Series = field(default_factory=dict)
    problem: str = ""


def scrape_all(targets: Mapping[str, str]) -> dict[str, Scrape]:
    """Return a scrape of every process, by its name."""
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        return dict(zip(targets, threads.map(_scrape, targets.values()), strict=True))


def _scrape(url: str) -> Scrape:
    at = time.monotonic()
    try:
        return Scrape(at, _parsed(fetch(url)))
    except (OSError, HTTPException) as error:  # urllib's errors are OSErrors
        reason = getattr(error, "reason", error)
        return Scrape(at, problem=str(getattr(reason, "strerror", None) or reason))
    except ValueError:
        return Scrape(at, problem=f"{url} answers with what are no metrics")


def _parsed(text: str) -> Series:
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError:
        raise click.ClickException("`mmesh top` needs `pip install 'mmesh[serving]'`") from None
    ours = "".join(f"{line}\n" for line in text.splitlines() if line.startswith(_OURS))
    if not ours:
        raise ValueError("there are no metrics")
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(ours):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found
