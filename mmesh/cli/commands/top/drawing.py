"""The page as tables."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mmesh.cli.commands.top.page import Page, ProcessRow
from mmesh.cli.output.tables import table
from mmesh.cli.output.terminal import shown

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


def drawn(page: Page, title: str, most_troubles: int | None = None) -> Group:
    """Return the page for a terminal, with so many alerts and troubles, or all; tables follow."""
    from rich.console import Group
    from rich.text import Text

    now = time.strftime("%H:%M:%S")
    parts = [Text(shown(f"{title}   {now}, {page.seconds:.1f} s"), "bold"), Text(_traffic(page))]
    alerts = [f"{one.severity} {one.name}: {one.summary}" for one in page.alerts]
    said = [*alerts, *page.troubles]
    parts += [Text(shown(f"! {one}"), "bold red") for one in said[:most_troubles]]
    if more := len(said[most_troubles:]) if most_troubles is not None else 0:
        parts.append(Text(f"! and {more} more, which --once lists", "bold red"))
    stages = [
        [stage, _ms(times.mean), _ms(times.p50), _ms(times.p99)]
        for stage, times in page.stages.items()
    ]
    # Processes first: what does not fit on a small screen is cut off at its end.
    tables = [_numbers(_COLUMNS, map(_row, page.processes))]
    if stages:
        tables.append(_numbers(["stage", "mean ms", "p50 ms", "p99 ms"], stages))
    return Group(*parts, *(piece for one in tables for piece in (Text(""), one)))


def _numbers(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table of a line for each row, whose columns but the first are numbers."""
    made = table(columns, rows)
    made.columns[0].no_wrap = True
    for number, column in enumerate(made.columns):
        column.overflow = "ellipsis"
        column.justify = "right" if number else "left"
    return made


_COLUMNS = ["process", "calls /s", "fail /s", "p50 ms", "p99 ms", "queue p99", "run", "wait",
            "cores", "MiB", "candi- dates", "behind s"]  # fmt: skip


def _row(one: ProcessRow) -> list[str]:
    if one.problem:
        return [one.name, "away", *[""] * 10]
    return [
        one.name, f"{one.calls:.1f}", f"{one.failed:.1f}", _ms(one.times.p50), _ms(one.times.p99),
        _ms(one.queue_p99), _whole(one.running), _whole(one.waiting), f"{one.cores:.2f}",
        _whole(one.memory_bytes / 2**20), _whole(one.candidates),
        "" if one.behind_s is None else f"{one.behind_s:.1f}",
    ]  # fmt: skip


def _whole(number: float | None) -> str:
    return "" if number is None else f"{number:.0f}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}"


def _traffic(page: Page) -> str:
    now = page.traffic
    lines = [
        f"searches {now.searches:.1f}/s   failed {now.failed:.1f}/s   slow {now.slow:.1f}/s   "
        f"running {now.running:.0f}   p50 {_ms(now.times.p50)} ms   p99 {_ms(now.times.p99)} ms",
        f"coverage {_share(now.coverage)}   embeddings remembered {_share(now.embeddings_found)}   "
        f"scores remembered {_share(now.scores_found)}",
        f"hits {_rates(now.hits)}   skipped {_rates(now.degradations)}",
        f"ingested {now.ingested:.1f}/s   refused {now.refused:.1f}/s   replicas "
        + (" ".join(f"{shard}:{count}" for shard, count in page.replicas.items()) or "-"),
    ]
    return shown("\n".join(lines))


def _rates(rates: dict[str, float]) -> str:
    return " ".join(f"{name} {rate:.1f}/s" for name, rate in sorted(rates.items())) or "-"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
