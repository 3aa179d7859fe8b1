"""The board as Grafana reads it, built by Grafana's own SDK from the panels of `cluster.boards.panels`."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models

from cluster.boards.panels import ROWS
from cluster.boards.queries import Panel

UID: Final = "bicot"
PANEL_HEIGHT: Final = 8
STAT_HEIGHT: Final = 4
_DATASOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
Builder = timeseries.Panel | stat.Panel | statetimeline.Panel


def board_json() -> str:
    """The board, ready to be imported or provisioned."""
    return JSONEncoder(sort_keys=True, indent=2).encode(build_board().build()) + "\n"


def build_board() -> builders.Dashboard:
    board = (
        builders.Dashboard("bicot")
        .uid(UID)
        .description("A run of bicot: what it learns, how fast, and how its workers and rewards are.")
        .tags(["bicot", "ray"])
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-6h", "now")
        .refresh("10s")
        .timezone("browser")
        .with_variable(builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_variable("run", "label_values(ray_bicot_alive_unixtime, run)", "Run"))
        .with_variable(_variable("SessionName", "label_values(ray_bicot_alive_unixtime, SessionName)", "Ray session"))
        .with_variable(_variable("Cluster", "label_values(ray_node_cpu_utilization, ray_io_cluster)", "Ray cluster"))
        .annotation(_annotation("Learner restarts", 'ray_bicot_restarts_total{run=~"$run"}', "red"))
        .annotation(_annotation("Checkpoints", 'ray_bicot_checkpoints_total{run=~"$run",outcome="written"}', "blue"))
    )
    number = 0
    for row in ROWS:
        board = board.with_row(builders.Row(row.title).id(number := number + 1))
        for panel in row.panels:
            board = board.with_panel(_panel(panel).id(number := number + 1))
    return board


def _variable(name: str, query: str, label: str) -> builders.QueryVariable:
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(_DATASOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .include_all(True)
        .all_value(".*")
        .multi(True)
        .current(models.VariableOption(text="All", value="$__all", selected=True))
    )


def _annotation(name: str, series: str, color: str) -> builders.AnnotationQuery:
    query = builders.AnnotationQuery().name(name).datasource(_DATASOURCE).enable(True).icon_color(color)
    return query.expr(f"sum by (run) (changes({series}[$__interval])) > 0")


def _panel(panel: Panel) -> Builder:
    builder = _of_kind(panel)
    height = STAT_HEIGHT if panel.kind == "stat" else PANEL_HEIGHT
    builder = builder.title(panel.title).description(panel.meaning).datasource(_DATASOURCE)
    builder = builder.unit(panel.unit).height(height).span(panel.width)
    for number, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + number))
        target = target.instant() if panel.kind == "stat" else target.range()
        builder = builder.with_target(target)
    return builder


def _of_kind(panel: Panel) -> Builder:
    if panel.kind == "stat":
        return (
            stat.Panel()
            .graph_mode(common.BigValueGraphMode.NONE)
            .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        )
    if panel.kind == "states":
        return statetimeline.Panel().merge_values(True).row_height(0.8)
    lines = (
        timeseries.Panel()
        .line_width(2)
        .show_points(common.VisibilityMode.AUTO)
        .span_nulls(True)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .calcs(["lastNotNull"])
            .show_legend(True)
        )
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
    )
    if panel.kind == "stacked":
        stacking = common_builders.StackingConfig().mode(common.StackingMode.NORMAL)
        lines = lines.stacking(stacking).fill_opacity(50).line_width(1)
    return lines
