"""Queries of Prometheus in rules, scalers and dashboards: they parse, and know their names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tools.k8s.manifests import Manifests, Object, Problem, place

METRICS = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
FOREIGN = frozenset(
    {
        "up",
        "process_start_time_seconds",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
    }
)
"""Of Prometheus itself, and of every Python process with its client."""
_ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|", re.MULTILINE)
_VARIABLES = {"$__rate_interval": "5m", "$__interval": "1m", "$__range": "1h"}


def parse_error(query: str) -> str | None:
    """Return what is wrong with a query, None when it parses."""
    import promql_parser  # of an extra: what only names metrics needs no parser

    try:
        promql_parser.parse(with_intervals(query))
    except ValueError as error:
        return str(error)
    return None


def with_intervals(query: str) -> str:
    """Return a query of a dashboard with times in place of Grafana's variables."""
    for variable, value in _VARIABLES.items():
        query = query.replace(variable, value)
    return query


def names_in(query: str) -> set[str]:
    """Return the names of the series that a query reads."""
    import promql_parser

    names: set[str] = set()
    _collect(promql_parser.parse(with_intervals(query)), names)
    return names


def _collect(node: object, names: set[str]) -> None:
    for child in ("expr", "lhs", "rhs", "param", "vector_selector"):
        inner = getattr(node, child, None)
        if inner is not None and not isinstance(inner, str):
            _collect(inner, names)
    for argument in getattr(node, "args", None) or ():
        _collect(argument, names)
    if type(node).__name__ == "VectorSelector" and (name := getattr(node, "name", "")):
        names.add(name)


def documented_names() -> frozenset[str]:
    """Return the names of all series that the services export, as docs/reference/metrics.md has."""
    rows = _ROW.findall(METRICS.read_text())
    return frozenset(name + suffix for name, kind in rows for suffix in SUFFIXES[kind])


def problems_of(manifests: Manifests) -> Iterator[Problem]:
    """Yield what is wrong with the queries of rules and scalers."""
    recorded = {rule["record"] for rule in _rules(manifests) if "record" in rule}
    known = documented_names() | FOREIGN | recorded
    for one in manifests.of("PrometheusRule"):
        for rule in _rules_of(one):
            yield from _of_query(place(one), str(rule.get("expr", "")), known)
    for one in manifests.of("ScaledObject"):
        for trigger in one["spec"].get("triggers") or ():
            about = trigger.get("metadata", {})
            yield from _of_query(place(one), about.get("query", ""), known)
            if about.get("ignoreNullValues") != "false":
                yield Problem(place(one), "a broken query would scale it to the minimum")


def _of_query(where: str, query: str, known: frozenset[str]) -> Iterator[Problem]:
    if (error := parse_error(query)) is not None:
        yield Problem(where, f"{query!r}: {error}")
        return
    for name in sorted(names_in(query) - known):
        yield Problem(where, f"{name} is exported by nothing and recorded by no rule")


def _rules(manifests: Manifests) -> Iterator[Object]:
    for one in manifests.of("PrometheusRule"):
        yield from _rules_of(one)


def _rules_of(one: Object) -> Iterator[Object]:
    for group in one["spec"].get("groups") or ():
        yield from group.get("rules") or ()
