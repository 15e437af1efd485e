"""What a dashboard consists of: rows of panels, each with the queries that it draws."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Query:
    """A query of Prometheus; `legend` names its lines by their labels, as `{{label}}`."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph."""

    title: str
    description: str
    """What it shows and what to make of it."""
    unit: str
    """Grafana's id of a unit: s, bytes, percentunit, ops, short."""
    queries: tuple[Query, ...]
    limit: float | None = None
    """From where on the line is drawn red."""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels side by side under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard; `name` is its file and the end of its uid."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> list[Panel]:
        """All panels."""
        return [panel for row in self.rows for panel in row.panels]


def panel(
    title: str, unit: str, description: str, *queries: str, limit: float | None = None
) -> Panel:
    """Return a panel whose queries are written as `EXPRESSION` or `EXPRESSION  # LEGEND`."""
    parts = (query.partition("  # ") for query in queries)
    drawn = tuple(Query(expr, legend) for expr, _, legend in parts)
    return Panel(title, description, unit, drawn, limit)


def quantiles(histogram: str, by: str = "", where: str = "") -> tuple[str, ...]:
    """Return queries of the median and the 99th percentile of a histogram, by some labels."""
    labels = f"le, {by}" if by else "le"
    legend = " " + "/".join(f"{{{{{label}}}}}" for label in by.split(", ")) if by else ""
    inner = f"sum by ({labels}) (rate({histogram}_bucket{{{_and(where)}}}[$__rate_interval]))"
    return tuple(
        f"histogram_quantile({share}, {inner})  # {name}{legend}"
        for share, name in ((0.5, "p50"), (0.99, "p99"))
    )


def rate(counter: str, by: str, where: str = "") -> str:
    """Return a query of a counter's rate by a label."""
    return f"sum by ({by}) (rate({counter}{{{_and(where)}}}[$__rate_interval]))  # {{{{{by}}}}}"


def gauge(name: str, by: str, how: str = "max", where: str = "") -> str:
    """Return a query of a gauge by a label."""
    return f"{how} by ({by}) ({name}{{{_and(where)}}})  # {{{{{by}}}}}"


def _and(where: str) -> str:
    return f'namespace="$namespace"{"," if where else ""}{where}'
