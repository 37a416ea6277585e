"""What a real Prometheus makes of two live servers under load: no panel is empty, exemplars arrive, alerts fire."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from benchmarks.harness.prometheus import substitute
from deploy.grafana.panels import ANNOTATIONS
from tests.observability.conftest import Stack, empty_panels, live
from tests.requires import requires
from tests.waiting import eventually

pytestmark = requires("prometheus")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """See `live`."""
    with live(tmp_path_factory.mktemp("observed")) as running:
        yield running


def test_no_panel_comes_back_empty(stack: Stack) -> None:
    """Every expression of every panel, against what two live servers and a Triton were scraped for."""
    assert empty_panels(stack.prometheus) == []


def test_prometheus_takes_the_exemplars_in(stack: Stack) -> None:
    """The ids can be asked for by the graph that shows the bucket."""
    now = time.time()
    found = stack.prometheus.api("query_exemplars", query="awnet_request_seconds_bucket", start=now - 600, end=now)
    assert any(entry["exemplars"] for entry in found)


def test_a_reload_and_an_alert_are_annotated(stack: Stack) -> None:
    """The load holds attacked images, so an alert fires; nothing was reloaded until a version is published."""
    expressions = {name: substitute(expression, "10s", "30s") for name, expression, _, _ in ANNOTATIONS}

    def alerts() -> set[str]:
        return {found["metric"]["alertname"] for found in stack.prometheus.query(expressions["Alerts"])}

    eventually(lambda: "AWNetAdversarialCusum" in alerts())
    assert stack.prometheus.query(expressions["Reloads"]) == []
    stack.reload()
    [found] = stack.prometheus.query(expressions["Reloads"])
    assert found["metric"]["model"] == "awnet"
