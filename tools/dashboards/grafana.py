"""Plans turned into Grafana's JSON by its own SDK."""

from __future__ import annotations

import re

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

from tools.dashboards.plan import Board, Panel

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH, HEIGHT = 24, 8
_HAS_EXEMPLARS = re.compile(r"mmesh_(rpc|gateway_stage)_seconds_bucket")
"""Histograms whose buckets link to traces."""


def encode(board: Board, others: list[Board]) -> str:
    """Return the JSON of a dashboard with links to the others."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(f"mmesh-{board.name}")
        .description(board.description)
        .tags(["mmesh"])
        .editable()
        .timezone("browser")
        .refresh("30s")
        .time("now-3h", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Source").type("prometheus")
        )
        .with_variable(_namespaces())
    )
    for other in others:
        if other.name != board.name:
            url = f"/d/mmesh-{other.name}?${{__url_time_range}}&${{__all_variables}}"
            built.link(dashboard.DashboardLink(other.title).type(_LINK).url(url))
    for row in board.rows:
        built.with_row(dashboard.Row(row.title))
        for one in row.panels:
            built.with_panel(_panel(one, WIDTH // len(row.panels)))
    text: str = JSONEncoder(sort_keys=True, indent=1).encode(built.build())
    return text + "\n"


_LINK = models.DashboardLinkType.LINK


def _namespaces() -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable("namespace")
        .label("Namespace")
        .datasource(SOURCE)
        .query("label_values(mmesh_rpc_seconds_count, namespace)")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    )


def _panel(one: Panel, width: int) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .title(one.title)
        .description(one.description)
        .unit(one.unit)
        .datasource(SOURCE)
        .span(width)
        .height(HEIGHT)
        .min(0)
        .fill_opacity(8)
        .line_width(1)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    if one.limit is not None:
        built.thresholds(
            dashboard.ThresholdsConfig()
            .mode(models.ThresholdsMode.ABSOLUTE)
            .steps([models.Threshold(color="green"), models.Threshold(one.limit, "red")])
        ).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.LINE)
        )
    for number, query in enumerate(one.queries):
        target = (
            prometheus.Dataquery()
            .expr(query.expr)
            .legend_format(query.legend or one.title)
            .ref_id(chr(ord("A") + number))
            .datasource(SOURCE)
        )
        if _HAS_EXEMPLARS.search(query.expr):
            target.exemplar(True)
        built.with_target(target)
    return built
