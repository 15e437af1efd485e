"""Rates, quantiles and gauges between two scrapes, as Prometheus has them."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from mmesh.cli.commands.top.alerts import Alert
from mmesh.cli.commands.top.drawing import drawn
from mmesh.cli.commands.top.page import page_of
from mmesh.cli.commands.top.scrape import Scrape
from mmesh.cli.commands.top.window import Window, quantile


def scrape(at, **series):
    """Return a scrape; a series is a value, or {label=value text: value} of one label."""
    found = {}
    for name, values in series.items():
        by_label = values if isinstance(values, dict) else {"": values}
        found[name] = {
            frozenset([tuple(text.split("="))] if text else []): value
            for text, value in by_label.items()
        }
    return Scrape(at, found)


def test_a_rate_is_the_growth_by_the_second_of_all_processes():
    before = {"a": scrape(0.0, n=10.0), "b": scrape(0.0, n=0.0)}
    after = {"a": scrape(2.0, n=14.0), "b": scrape(2.0, n=2.0)}
    assert Window(before, after).rate("n") == 3.0
    assert Window(before, after).of("a").rate("n") == 2.0


def test_a_restarted_process_counts_from_nothing():
    window = Window({"a": scrape(0.0, n=1000.0)}, {"a": scrape(2.0, n=4.0)})
    assert window.rate("n") == 2.0


def test_a_label_that_is_new_counts_from_nothing_and_a_process_that_is_new_does_not_count():
    before = {"a": scrape(0.0, n={"code=OK": 1.0})}
    after = {"a": scrape(1.0, n={"code=OK": 1.0, "code=INTERNAL": 3.0}), "b": scrape(1.0, n=99.0)}
    assert Window(before, after).rates("n", "code") == {"OK": 0.0, "INTERNAL": 3.0}


def test_a_process_that_was_away_does_not_count_and_its_gauges_do():
    before = {"a": Scrape(0.0, problem="refused")}
    window = Window(before, {"a": scrape(1.0, n=5.0)})
    assert window.rate("n") == 0.0
    assert window.gauge("n") == 5.0


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 1.5), (0.9, 1.8), (1.0, 2.0)],
)
def test_a_quantile_lies_inside_its_bucket(share, expected):
    assert quantile(share, {1.0: 5.0, 2.0: 10.0, math.inf: 10.0}) == pytest.approx(expected)


def test_empty_buckets_below_are_not_interpolated_over():
    assert quantile(0.5, {1.0: 0.0, 2.0: 4.0, math.inf: 4.0}) == 1.5


def test_what_is_above_all_bounds_is_said_to_be_at_the_last():
    assert quantile(0.99, {1.0: 1.0, 2.0: 1.0, math.inf: 10.0}) == 2.0


def test_of_nothing_there_is_no_quantile():
    assert quantile(0.5, {}) is None
    assert quantile(0.5, {1.0: 0.0, math.inf: 0.0}) is None


def test_what_alerts_say_of_a_process_is_said():
    gib = float(1 << 30)
    after = {
        "gateway": scrape(1.0, mmesh_gateway_shard_sets=0.0),
        "encoder": scrape(1.0, mmesh_encoder_parity_max_abs_diff=0.1),
        "index-0": scrape(
            1.0,
            mmesh_index_staleness_seconds={"collection=c": 300.0, "collection=d": 0.0},
            mmesh_index_snapshot_age_seconds={"collection=c": 8 * 3600.0},
            mmesh_index_refused_collections={
                "reason=MEMORY_FULL": 2.0,
                "reason=CORRUPT_DATA": 1.0,
                "reason=INTERNAL": 1.0,
                "reason=HISTORY_LOST": 0.0,
            },
            mmesh_index_disk_free_bytes={
                "folder=log": gib,
                "folder=scratch": gib,
                "folder=store": 50 * gib,
            },
            mmesh_index_disk_size_bytes={
                f"folder={name}": 100 * gib for name in ("log", "scratch", "store")
            },
            mmesh_task_unwell={"task=index-follower": 1.0, "task=host": 0.0},
        ),
        "index-1": Scrape(1.0, problem="Connection refused"),
    }
    assert page_of(Window({}, after)).troubles == [
        "no set of shards is whole: searches fail",
        "encoder computes other numbers than it should",
        "index-0 is out of service: its task index-follower cannot go on",
        "index-0 is 300 s behind the log",
        "index-0 has stored no snapshot of what was written for 8 h",
        "index-0 did not load 1 collection, whose rows in the log are damaged",
        "index-0 did not load 1 collection, of which its log says why",
        "index-0 did not load 2 collections, which would not fit into memory",
        "index-0 has 1.0 GiB free on the disk of its log, scratch",
        "index-1 does not answer: Connection refused",
    ]


def test_a_screen_lists_so_many_troubles_and_counts_the_rest():
    now = {f"index-{n}": Scrape(1.0, problem="refused") for n in range(9)}
    page = page_of(Window({}, now), [Alert("MmeshDown", "page", "gone")])
    console = Console(file=io.StringIO(), width=100)
    console.print(drawn(page, "mmesh top", 4))
    shown = console.file.getvalue()
    assert "! page MmeshDown: gone" in shown
    assert "! index-2 does not answer: refused" in shown
    assert "! index-3 does not answer" not in shown
    assert "! and 6 more, which --once lists" in shown
    console.print(drawn(page, "mmesh top"))
    assert "! index-8 does not answer: refused" in console.file.getvalue()
