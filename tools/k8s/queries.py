"""Queries of Prometheus in rules, scalers and dashboards: they parse, and know their names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
OURS = ("mmesh:", "mmesh_")
"""How the names of our series begin, as rules and as metrics."""
EVERY = "every namespace"
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
    return {name for one in _selectors_in(query) if (name := getattr(one, "name", ""))}


def _selectors_in(query: str) -> Iterator[object]:
    import promql_parser

    return _selectors(promql_parser.parse(with_intervals(query)))


def _selectors(node: object) -> Iterator[object]:
    for child in ("expr", "lhs", "rhs", "param", "vector_selector"):
        inner = getattr(node, child, None)
        if inner is not None and not isinstance(inner, str):
            yield from _selectors(inner)
    for argument in getattr(node, "args", None) or ():
        yield from _selectors(argument)
    if type(node).__name__ == "VectorSelector":
        yield node


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
    for one in manifests.of("ScaledObject", "HorizontalPodAutoscaler"):
        yield from _of_other_namespaces(one)


def _of_query(where: str, query: str, known: frozenset[str]) -> Iterator[Problem]:
    if (error := parse_error(query)) is not None:
        yield Problem(where, f"{query!r}: {error}")
        return
    for name in sorted(names_in(query) - known):
        yield Problem(where, f"{name} is exported by nothing and recorded by no rule")


def _of_other_namespaces(one: Object) -> Iterator[Problem]:
    """Yield where an autoscaler asks for what pods of another namespace than its own do."""
    own = one["metadata"].get("namespace", "default")
    asked = _asked_by_keda(one) if one["kind"] == "ScaledObject" else _asked_by_hpa(one)
    for series, namespace in asked:
        if namespace != own:
            yield Problem(place(one), f"is in {own}, and asks for {series} of {namespace}")


def _asked_by_keda(one: Object) -> Iterator[tuple[str, str]]:
    """Yield the series of ours that a ScaledObject asks for, each with its namespace."""
    triggers = one["spec"].get("triggers") or ()
    queries = [about.get("metadata", {}).get("query", "") for about in triggers]
    sound = (query for query in queries if parse_error(query) is None)
    for selector in itertools.chain.from_iterable(map(_selectors_in, sound)):
        series = str(getattr(selector, "name", None))
        if series.startswith(OURS):
            yield series, _namespace_of(selector)


def _namespace_of(selector: Any) -> str:
    for matcher in selector.matchers.matchers:
        if matcher.name == "namespace" and str(matcher.op) == "MatchOp.Equal":
            return str(matcher.value)
    return EVERY


def _asked_by_hpa(one: Object) -> Iterator[tuple[str, str]]:
    """Yield the metrics of ours that a HorizontalPodAutoscaler asks for, as `_asked_by_keda`."""
    for about in one["spec"].get("metrics") or ():
        metric = about.get("external", {}).get("metric", {"name": ""})
        if metric["name"].startswith(OURS):
            labels = metric.get("selector", {}).get("matchLabels", {})
            yield metric["name"], labels.get("namespace", EVERY)


def _rules(manifests: Manifests) -> Iterator[Object]:
    for one in manifests.of("PrometheusRule"):
        yield from _rules_of(one)


def _rules_of(one: Object) -> Iterator[Object]:
    for group in one["spec"].get("groups") or ():
        yield from group.get("rules") or ()
