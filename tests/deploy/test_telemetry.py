"""The collector's configuration fits together, and listens for what the servers send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

FOLDER = Path(__file__).parents[2] / "deploy/telemetry"


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text("utf-8"))


def test_each_part_of_the_collector_is_in_a_pipeline_and_each_pipeline_has_its_parts() -> None:
    """A name that is written differently would end the collector's start."""
    config = read("collector.yaml")
    pipelines = config["service"]["pipelines"]
    assert set(pipelines) == {"traces", "metrics", "logs"}
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in pipelines.values() for name in pipeline[kind]}
        assert used == set(config[kind])
    assert all(pipeline["processors"][0] == "memory_limiter" for pipeline in pipelines.values())
    assert config["receivers"]["otlp"]["protocols"].keys() == {"http"}


def test_exemplars_and_log_lines_lead_to_traces() -> None:
    """By the name that the server gives the id, to a source that is there."""
    sources = {source["uid"]: source for source in read("grafana-datasources.yml")["datasources"]}
    (destination,) = sources["prometheus-traces"]["jsonData"]["exemplarTraceIdDestinations"]
    assert destination == {"name": "trace_id", "datasourceUid": "tempo"} and "tempo" in sources
    assert sources["tempo"]["jsonData"]["tracesToLogsV2"]["datasourceUid"] in sources
