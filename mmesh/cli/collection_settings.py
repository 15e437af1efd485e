"""The settings of a collection, as options of commands and as rows of a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import click

if TYPE_CHECKING:
    from mmesh.collections import CollectionSettings, SettingsChange

_OPTIONS = (
    click.option("--index-factory", metavar="FACTORY",
                 help='FAISS factory string of its segments, such as "Flat" or '
                 '"IVF512,PQ192x4fs,Refine(SQfp16)"; "" lets each segment suit its size.'),
    click.option("--recall-target", type=float, metavar="RECALL",
                 help="Recall at 10 for which segments are tuned, 0.5 to 1; 0 is 0.97."),
    click.option("--read-only/--writable", default=None,
                 help="Whether writes are refused."),
    click.option("--max-candidates", type=int, metavar="N",
                 help="Candidates that it may hold; 0 is any number."),
    click.option("--max-candidate-bytes", type=int, metavar="BYTES",
                 help="Bytes of one candidate; 0 is what its parts may have."),
    click.option("--max-attributes", type=int, metavar="N",
                 help="Attributes of one candidate, up to 64; 0 is 64."),
    click.option("--max-filter-depth", type=int, metavar="N",
                 help="Depth of a filter, up to 16; 0 is 16."),
    click.option("--max-limit", type=int, metavar="N",
                 help="Hits of one search, up to 1000; 0 is 1000."),
)  # fmt: skip


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for each setting; None where it is not given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def given(options: dict[str, Any]) -> SettingsChange:
    """Return the change that the options ask for; those that were not given are no part of it."""
    chosen = {name: value for name, value in options.items() if value is not None}
    return cast("SettingsChange", chosen)


def settings_rows(settings: CollectionSettings) -> list[tuple[str, str]]:
    """Return each setting with its value, in words where it is the default."""
    limits = settings.limits
    return [
        ("index factory", settings.index_factory or "by size"),
        ("recall target", f"{settings.recall_target or 0.97:g}"),
        ("max candidates", str(limits.max_candidates or "any number")),
        ("max candidate bytes", str(limits.max_candidate_bytes or "as its parts")),
        ("max attributes", str(limits.max_attributes or 64)),
        ("max filter depth", str(limits.max_filter_depth or 16)),
        ("max limit", str(limits.max_limit or 1000)),
        ("mirror", settings.mirror or "none"),
        ("read-only", "yes" if settings.read_only else "no"),
    ]
