"""The dashboard: what is committed is what the program makes, and it follows the linter's rules."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from grafana_foundation_sdk.models.dashboard import Dashboard

from benchmarks.harness.prometheus import substitute
from deploy.grafana.build import OUT, document
from deploy.grafana.panels import COLOURS, EXPECTED, ROWS, STATUSES, queries

TEXT = OUT.read_text("utf-8")
BOARD: dict[str, Any] = json.loads(TEXT)
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
SELECTOR = re.compile(r"\{[^{}]*\}")


def test_the_committed_file_is_what_the_program_makes() -> None:
    """Byte for byte: nobody edits the JSON by hand. Run `python -m deploy.grafana.build`."""
    assert document() == TEXT


def test_the_file_reads_back_as_the_type_that_grafana_publishes() -> None:
    """Every field is one that Grafana's own schema knows; writing it again gives the same document."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    # Three fields of a Prometheus annotation are not in the published type.
    known = json.loads(TEXT)
    for annotation in known["annotations"]["list"]:
        for name in ("titleFormat", "tagKeys", "useValueForTime"):
            del annotation[name]
    assert json.loads(JSONEncoder().encode(Dashboard.from_json(known))) == known


def test_the_rows_are_the_five_questions_in_order() -> None:
    """Status first: what must be seen from afar."""
    rows = [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Status", "Detection", "Requests", "Saturation", "Model and engine"]


def test_panels_do_not_overlap_and_fit_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24, panel["title"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_follows_the_rules_of_the_dashboard_linter(panel: dict[str, Any]) -> None:
    """Templated data source, title, description, unit; job and instance in every selector; counters under a rate."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == "${datasource}"
        expression: str = target["expr"]
        for selector in SELECTOR.findall(expression):
            assert 'job=~"$job"' in selector, selector
            assert re.search(r'instance=~"\$instance\|?"', selector), selector
        for function, span in re.findall(r"(\w+)\([^()\[\]]*\[([^\]]+)\]", expression):
            assert span == "$__rate_interval" or (function == "increase" and span == "$__range"), expression
        for counter in re.finditer(r"(\w+)\s*\((?:[\w]+_total|\w+_bucket|\w+_sum|\w+_count)\{", expression):
            assert counter[1] in ("rate", "increase"), expression


def test_the_board_itself_follows_the_rules_of_the_dashboard_linter() -> None:
    """Not editable in place; variables for data source, job, instance and model, reloaded as time goes on."""
    assert BOARD["editable"] is False
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "model"]
    assert (variables["datasource"]["type"], variables["datasource"]["label"]) == ("datasource", "Data source")
    for name in ("job", "instance", "model"):
        variable = variables[name]
        assert variable["label"] == name.capitalize()
        assert variable["query"].startswith("label_values(")
        assert variable["datasource"]["uid"] == "${datasource}"
        assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".+")
        assert variable["refresh"] == 2


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS)
def test_every_expression_parses(title: str, expression: str) -> None:
    """By a parser that is not Prometheus's own code path through our tests."""
    promql_parser.parse(substitute(expression, "1m", "1h"))


def test_annotations_tell_of_reloads_and_alerts() -> None:
    annotations = BOARD["annotations"]["list"]
    assert [annotation["name"] for annotation in annotations] == ["Reloads", "Alerts"]
    for annotation in annotations:
        promql_parser.parse(substitute(annotation["expr"], "1m", "1h"))


def test_a_name_has_the_same_colour_in_every_panel() -> None:
    """Red is adversarial, wrong or a 5xx wherever it is drawn; what the contract says is dashed."""
    for panel in PANELS:
        for override in panel["fieldConfig"]["overrides"]:
            name, properties = override["matcher"]["options"], {p["id"]: p["value"] for p in override["properties"]}
            known = COLOURS | {f"/^{digit}/": colour for digit, colour in STATUSES.items()}
            assert properties["color"]["fixedColor"] == known[name]
            assert ("custom.lineStyle" in properties) == name.startswith(EXPECTED)
    coloured = {panel["title"] for panel in PANELS if panel["fieldConfig"]["overrides"]}
    assert {"Verdicts", "Flagged, against what the thresholds were set to flag", "Requests by status"} <= coloured


def test_tritons_own_metrics_are_on_the_dashboard() -> None:
    """Four panels read what Triton itself counts, by the model that was chosen."""
    own = {title for title, expression in EXPRESSIONS if "nv_" in expression}
    assert len(own) >= 4
    for title, expression in EXPRESSIONS:
        if title in own:
            assert 'model=~"$model"' in expression


def test_provisioning_names_the_folder_that_holds_the_dashboard() -> None:
    """Grafana finds data source and dashboard by itself."""
    yaml = pytest.importorskip("yaml")
    folder = Path(OUT).parents[1] / "provisioning"
    [provider] = yaml.safe_load((folder / "dashboards/awnet.yml").read_text("utf-8"))["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    [source] = yaml.safe_load((folder / "datasources/prometheus.yml").read_text("utf-8"))["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)


def test_every_panel_has_a_row() -> None:
    assert sum(len(panels) for panels in ROWS.values()) == len(PANELS)
    assert len(list(queries())) == len(EXPRESSIONS)
