"""Writes the dashboard `deploy/grafana/dashboards/awnet.json`; the tests hold the committed file to this program.

    python -m deploy.grafana.build            # write it again
    python -m deploy.grafana.build --queries  # list every panel with its expressions

Nothing here asks a Grafana: the types are those that Grafana publishes for its dashboards, the expressions are run
against a live Prometheus by the tests.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode

from deploy.grafana.panels import ANNOTATIONS, EXPECTED, GREEN, RED, ROWS, STATUSES, Panel, S, queries

OUT = Path(__file__).with_name("dashboards") / "awnet.json"
SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")


def dashboard() -> model.Dashboard:
    """The whole dashboard."""
    made = (
        build.Dashboard("AW-Net server")
        .uid("awnet-server")
        .description("Health of the server, and whether somebody attacks it. Made by deploy/grafana/build.py.")
        .tags(["awnet"])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(build.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(variable("job", "Job", 'label_values({__name__=~"awnet_engine_up|nv_inference_count"}, job)'))
        .with_variable(variable("instance", "Instance", 'label_values(up{job=~"$job"}, instance)'))
        .with_variable(
            variable("model", "Model", f"label_values(awnet_model_info{{{S}}}, model)"),
        )
    )
    for name, expr, colour, title in ANNOTATIONS:
        made = made.annotation(Annotation(name, expr, colour, title))
    number = 0
    for row, panels in ROWS.items():
        made = made.with_row(build.Row(row).id(100 + len(made.build().panels or [])))
        for panel in panels:
            number += 1
            made = made.with_panel(visual(panel).id(number))
    return made.build()


def variable(name: str, label: str, query: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(SOURCE)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )


class _Annotated(model.AnnotationQuery):
    """Grafana reads three more fields of an annotation by Prometheus than its published type has."""

    def __init__(self, title: str, **fields: Any) -> None:
        super().__init__(**fields)
        self._title = title

    def to_json(self) -> dict[str, object]:
        return super().to_json() | {"titleFormat": self._title, "tagKeys": "", "useValueForTime": False}


class Annotation(build.AnnotationQuery):
    """Events drawn over every graph."""

    def __init__(self, name: str, expr: str, colour: str, title: str) -> None:
        super().__init__()
        self._internal = _Annotated(
            title, name=name, datasource=SOURCE, enable=True, hide=False, icon_color=colour, expr=expr
        )


def visual(panel: Panel) -> Any:
    """The builder of one panel."""
    builders = {"stat": stat.Panel, "heatmap": heatmap.Panel, "lines": timeseries.Panel, "share": timeseries.Panel}
    made: Any = builders[panel.kind]()
    made = made.title(panel.title).description(panel.description).unit(panel.unit).datasource(SOURCE)
    made = made.span(panel.width).height(4 if panel.kind == "stat" else 8)
    for letter, query in zip("ABCDEF", panel.queries, strict=False):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter).datasource(SOURCE)
        target = target.instant() if panel.kind == "stat" else target.range()
        if panel.kind == "heatmap":
            target = target.format("heatmap")
        if "_seconds_bucket" in query.expr and panel.kind == "lines":
            target = target.exemplar(True)  # request ids, to be found again in the log
        made = made.with_target(target)
    first = RED if panel.falls else GREEN
    steps = [model.Threshold(None, first), *(model.Threshold(value, colour) for value, colour in panel.steps)]
    if panel.steps:
        made = made.thresholds(build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
    if panel.kind == "stat":
        made = made.color_mode(shapes.BigValueColorMode.BACKGROUND).graph_mode(shapes.BigValueGraphMode.NONE)
        made = made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        return made.color_scheme(build.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    if panel.kind == "heatmap":
        return made.calculate(False).color(
            heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
        )
    made = made.legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(shapes.LegendDisplayMode.LIST)
        .placement(shapes.LegendPlacement.BOTTOM)
    )
    made = made.tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI))
    made = made.fill_opacity(10).line_width(1).show_points(shapes.VisibilityMode.NEVER)
    if panel.kind == "share":
        made = made.stacking(common.StackingConfig().mode(shapes.StackingMode.PERCENT)).fill_opacity(60)
    if panel.logarithmic:
        made = made.scale_distribution(common.ScaleDistributionConfig().type(shapes.ScaleDistribution.LOG).log(10))
    else:
        made = made.min(0)
    if panel.steps:
        made = made.thresholds_style(common.GraphThresholdsStyleConfig().mode(shapes.GraphTresholdsStyleMode.DASHED))
    for label, colour in panel.colours().items():
        made = made.override_by_name(label, [_fixed(colour), *([_DASHED] if label.startswith(EXPECTED) else [])])
    for digit, colour in STATUSES.items() if panel.of_statuses else ():
        made = made.override_by_regexp(f"/^{digit}/", [_fixed(colour)])
    return made


def _fixed(colour: str) -> model.DynamicConfigValue:
    return model.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})


_DASHED = model.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]})


def document() -> str:
    """The committed file's text."""
    return JSONEncoder(sort_keys=True, indent=2).encode(dashboard()) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", action="store_true", help="list the expressions; write nothing")
    if parser.parse_args().queries:
        for row, title, query in queries():
            print(f"{row} | {title} | {query.expr}")
        return
    OUT.write_text(document(), "utf-8")


if __name__ == "__main__":
    main()
