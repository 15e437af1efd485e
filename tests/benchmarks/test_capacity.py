"""A real index process takes what the plan says; three starts of a process, about 5 s."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest

from tests.effort import needs_full_effort

ROWS, DIM = 3000, 256
SAME = 1.25


@pytest.fixture(scope="module")
def capacity():
    folder = str(Path(__file__).parents[2] / "benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [folder, *sys.path])
        import capacity

        yield capacity


@needs_full_effort
def test_memory_and_disk_of_a_process_are_within_the_plan(capacity):
    planned = capacity.planned_facts(ROWS, DIM)
    found = capacity.measured_facts(ROWS, Namespace(dim=DIM, seed=7, seconds=0.5, log="sqlite"))
    assert found.used_mib <= SAME * planned.used_mib
    assert found.most_mib <= SAME * planned.most_mib
    assert planned.log_mib / 2 <= found.log_mib <= planned.log_mib
    assert found.search_ms > 0


def test_on_paper_nothing_falls_as_rows_grow(capacity):
    header, rows = capacity.paper()
    assert [row[0] for row in rows] == list(capacity.PAPER)
    for name in ("shards", "index pods", "gateways"):
        column = [row[header.index(name)] for row in rows]
        assert column == sorted(column)
    assert all(row[header.index("GiB a pod")] <= 64 for row in rows)
