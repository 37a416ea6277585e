"""The committed results of the simulation, and the chart whose autoscaler it has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import yaml
from matplotlib import pyplot

from awnet.planning.autoscaling import Autoscaling
from awnet.planning.times import BUNDLED
from benchmarks.deployment import predicted, simulation
from benchmarks.deployment.draw_simulation import draw
from tests.repository import ROOT

RESULTS = ROOT / "benchmarks/results/simulation"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(RESULTS.with_suffix(".json").read_text("utf-8"))
    return document


def test_the_autoscaler_has_the_values_of_the_chart() -> None:
    chart = ROOT / "deploy/kubernetes"
    values = yaml.safe_load((chart / "values.yaml").read_text("utf-8"))["autoscaling"]
    scaling = Autoscaling("queue")
    assert (scaling.minimum, scaling.maximum) == (values["minReplicas"], values["maxReplicas"])
    assert (scaling.queue_images, scaling.queue_share) == (values["queueImages"], values["queueShare"])
    assert scaling.cpu_share == values["cpuPercent"] / 100
    text = (chart / "templates/_helpers.tpl").read_text("utf-8").partition('define "awnet.scaling"')[2]
    policies = re.findall(r"type: Percent, value: (\d+), periodSeconds: (\d+)", text)[:2]
    assert [(float(share), float(seconds)) for share, seconds in policies] == [
        (100 * scaling.grow, scaling.up),
        (25, scaling.down),
    ]
    windows = re.findall(r"stabilizationWindowSeconds: (\d+)", text)[:2]
    assert [float(seconds) for seconds in windows] == [0, scaling.patience]


def test_the_page_is_made_of_the_figures(found: dict[str, Any]) -> None:
    assert RESULTS.with_suffix(".md").read_text("utf-8") == simulation.markdown(found)


def test_what_is_off_is_predicted_over_measured(found: dict[str, Any]) -> None:
    assert {row["layout"] for row in found["rows"]} == predicted.LAYOUTS.keys()
    for row in found["rows"]:
        for key, off in row["off"].items():
            assert off == pytest.approx(row["predicted"][key] / row["measured"][key] - 1)


def test_the_times_of_the_package_are_those_of_the_results(found: dict[str, Any]) -> None:
    assert json.loads(BUNDLED.read_text("utf-8")) == found["times"]


def test_the_same_rows_are_predicted_again(found: dict[str, Any]) -> None:
    """By the same seeds, from what was measured."""
    row = min(found["rows"], key=lambda row: float(row["rate"]))
    again = dict(row)
    predicted.predict([again], found)
    assert again["predicted"] == pytest.approx(row["predicted"], rel=0.02)
    assert again["off"] == pytest.approx(row["off"], rel=0.02, abs=0.02)


def test_a_burst_is_told_by_the_second(found: dict[str, Any]) -> None:
    for burst in found["burst"]:
        assert len(burst["p99_ms"]) == simulation.WHOLE and burst["most_pods"] >= 2
        assert burst["pods"][0] == [0, 1] and burst["pods"][1] == [0, 2]


def test_the_drawings_are_of_the_figures(
    found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same to the byte, whatever else was drawn in this process, and with what."""
    pyplot.switch_backend("agg")
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 14)
    draw(found, tmp_path)
    for name in ("simulation-load.svg", "simulation-burst.svg"):
        assert (tmp_path / name).read_text("utf-8") == (ROOT / "docs/images" / name).read_text("utf-8")
        assert (tmp_path / name).stat().st_size < 120_000


def test_the_page_tells_what_a_burst_costs_as_it_was_found(found: dict[str, Any]) -> None:
    """Within three per cent points: another measurement moves them by one."""
    text = (ROOT / "docs/scale.md").read_text("utf-8").partition("## A burst")[2]
    printed = [float(share) / 100 for share in re.findall(r"(\d+) %", text)]
    assert printed == pytest.approx([burst["refused_share"] for burst in found["burst"]], abs=0.03)
