"""How often tests repeat what they repeat, and how long they wait: one table for all of them.

`make test` takes FAST: every behaviour once or a few times. `make test-all` takes FULL (it sets
MMESH_TEST_EFFORT=full): what depends on chance, such as kills at random moments, gets the number of
tries at which it has found something before. One number alone is changed by its own variable, such
as MMESH_TEST_CRASH_ROUNDS=1000.

MMESH_TEST_PATIENCE multiplies the times that tests wait for something to happen, and those after
which pytest gives a test up. They are limits: a test that passes takes no longer for a larger one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import pytest
from hypothesis import settings

PREFIX = "MMESH_TEST_"


@dataclass(frozen=True)
class Effort:
    """Repetitions and durations that a test could make shorter or longer."""

    examples: int
    """Inputs that hypothesis tries for each property."""
    machine_examples: int
    """Random orders of calls to an index process that are compared with a dict."""
    log_examples: int
    """Random orders of calls to a log on each engine that are compared with a dict."""
    crash_rounds: int
    """Rounds of load, kill and restart of three index processes, on each engine."""
    history_steps: int
    """Steps of a walk through writes, kills, rollbacks and restores, on each engine."""
    snapshot_kills: int
    """Kills of an index process while it stores a snapshot."""
    damages: int
    """Ways of four in which each file of a snapshot is damaged."""
    moves: int
    """Moves of an alias between two collections under load, an odd number."""
    processes: int
    """Processes that open, create or carry over one log at the same moment."""
    pause_s: float
    """Pause between two calls of those that make load beside a change of the mesh."""
    hammer_s: float
    """Time that searches are looked at beside writes that replace all rows."""
    broken_inputs: int
    """Broken contents that a service is sent, twice."""
    outage_s: float
    """Time that the database is away under load."""
    freeze_s: float
    """Time that the database hangs under load; longer than the 5.5 s after which a write is given
    up."""


FAST = Effort(
    examples=10, machine_examples=4, log_examples=3, crash_rounds=2, history_steps=8,
    snapshot_kills=2, damages=1, moves=1, processes=2,
    pause_s=0.1, hammer_s=1.5, broken_inputs=100, outage_s=4.0, freeze_s=7.0,
)  # fmt: skip
FULL = Effort(
    examples=100, machine_examples=30, log_examples=20, crash_rounds=100, history_steps=300,
    snapshot_kills=12, damages=4, moves=3, processes=4,
    pause_s=0.0, hammer_s=5.0, broken_inputs=1000, outage_s=20.0, freeze_s=8.0,
)  # fmt: skip


def chosen(environment: Mapping[str, str]) -> Effort:
    """Return the effort that the environment asks for.

    Raises:
        ValueError: MMESH_TEST_EFFORT is neither "fast" nor "full", or a number is none.
    """
    name = environment.get(f"{PREFIX}EFFORT", "fast")
    efforts = {"fast": FAST, "full": FULL}
    if name not in efforts:
        raise ValueError(f"{PREFIX}EFFORT is {name!r}; use one of {', '.join(efforts)}")
    given = {one.name: environment.get(f"{PREFIX}{one.name.upper()}") for one in fields(Effort)}
    base = efforts[name]
    numbers = {n: type(getattr(base, n))(text) for n, text in given.items() if text is not None}
    return replace(base, **numbers)


EFFORT = chosen(os.environ)
PATIENCE = float(os.environ.get(f"{PREFIX}PATIENCE", "2"))


needs_full_effort = pytest.mark.skipif(
    os.environ.get(f"{PREFIX}EFFORT") != "full", reason="long: `make test-all` runs it"
)


def patient(seconds: float) -> float:
    """Return a limit for a wait that is `seconds` on a machine with nothing else to do."""
    return seconds * PATIENCE


settings.register_profile("mmesh", max_examples=EFFORT.examples, deadline=None)
