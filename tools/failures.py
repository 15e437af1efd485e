"""The table of docs/explanation/failures.md, from what tests/scenarios stored of its faults."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

RESULT = pathlib.Path("benchmarks/results/failures.json")
SEARCHES = {
    "known": "queries asked before",
    "new": "new queries",
    "reranked": "reranked searches",
}
WRITES = {"text": "writes of texts", "picture": "writes of pictures"}
REASON = re.compile(r"([A-Z]+(?:_[A-Z]+)*)")


def table() -> str:
    """Return where it was measured, and a row for each fault."""
    result = json.loads(RESULT.read_text("utf-8"))
    machine, facts = result["machine"], result["facts"]
    about = (
        f"Measured at commit `{result['versions']['commit']}` on {machine['cores']} cores of "
        f"{machine['cpu']}, time divided by {facts['factor']}: a second of the run stands for a "
        "minute.\n\n"
    )
    head = "| fault | users see | alerts | minutes to fire | to resolve |\n|---|---|---|---|---|\n"
    return about + head + "".join(map(_row, result["scenarios"]))


def _row(scenario: Mapping[str, Any]) -> str:
    alerts = scenario["alerts"] or [{"name": "", "fire_s": None, "resolve_s": None}]
    cells = [
        scenario["fault"],
        _seen(scenario["calls"]),
        "<br>".join(_name(alert) for alert in alerts),
        "<br>".join(_minutes(alert["fire_s"]) for alert in alerts),
        "<br>".join(_minutes(alert["resolve_s"]) for alert in alerts),
    ]
    return f"| {' | '.join(cells)} |\n"


def _name(alert: Mapping[str, Any]) -> str:
    return f"`{alert['name']}` ({alert['severity']})" if alert["name"] else "none"


def _minutes(measured: float | None) -> str:
    return "-" if measured is None else f"{measured:.1f}"


def _seen(calls: Mapping[str, Any]) -> str:
    """Return what came of searches, then of writes; those of a kind apart where they differ."""
    said = []
    for kinds, all_of_them in ((SEARCHES, "all searches"), (WRITES, "all writes")):
        outcomes = {name: _outcomes(calls[kind]) for kind, name in kinds.items() if kind in calls}
        if len(set(outcomes.values())) == 1:
            outcomes = {all_of_them: next(iter(outcomes.values()))}
        said += [f"{name}: {what}" for name, what in outcomes.items()]
    return "<br>".join(said)


def _outcomes(call: Mapping[str, Any]) -> str:
    total = sum(call["outcomes"].values())
    parts = []
    for outcome, count in sorted(call["outcomes"].items(), key=lambda pair: -pair[1]):
        shown = REASON.sub(r"`\1`", outcome)
        parts.append(shown if count == total else f"{100 * count / total:.0f} % {shown}")
    slow = f", after up to {call['slowest_s']:.0f} s" if call["slowest_s"] >= 1 else ""
    return ", ".join(parts) + slow
