"""Metrics and log lines by OTLP: the exposition's own families, and the log's own lines, once each."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.findings.delivery import DeliveryError
from server.settings.renames import METRICS
from server.telemetry.exporting import Exporting
from tests.server.telemetry.collector import Collector, value, values
from tests.server.tiny import Running, encoded, noise, publish
from tests.waiting import eventually

pytestmark = pytest.mark.process

PNG, IMAGE = encoded(noise()), {"content-type": "image/png"}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as listening:
        yield listening


def exported(collector: Collector) -> dict[tuple[str, frozenset[tuple[str, str]]], Any]:
    """The points of the last export by name and labels."""
    (resource,) = collector.messages("/v1/metrics")[-1].resource_metrics
    found = {}
    for scope in resource.scope_metrics:
        for metric in scope.metrics:
            for point in getattr(metric, metric.WhichOneof("data")).data_points:
                key = (metric.name, frozenset(values(point.attributes).items()))
                assert key not in found, "a series twice"
                found[key] = point
    return found


def number(point: Any) -> float:
    return float(getattr(point, point.WhichOneof("value")))


def test_metrics_are_the_expositions_own(collector: Collector, repository: Path) -> None:
    """Name by name and value by value, but for what changes by being looked at; exemplars with their trace."""
    signals = {"otlp_signals": "traces,metrics", "otlp_metrics_seconds": 1}
    with Running(repository, otlp_endpoint=collector.url, golden_probe_seconds=0, **signals) as server:
        server.wait_ready()
        headers = IMAGE | {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        for _ in range(5):
            server.http.post("/predict", content=PNG, headers=headers)
        predicted = ("awnet_request_seconds", frozenset({("route", "/predict")}))
        text = server.http.get("/metrics").text
        eventually(lambda: len(collector.messages("/v1/metrics")) >= 2 and exported(collector)[predicted].count == 5)
        points = exported(collector)
        exemplars = [exemplar for exemplar in points[predicted].exemplars]
    assert {exemplar.trace_id.hex() for exemplar in exemplars} == {TRACE}
    servers = {span.span_id for span in collector.spans() if span.kind == 2}
    assert {exemplar.span_id.hex() for exemplar in exemplars} <= servers
    compared = 0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = frozenset((name, value) for name, value in sample.labels.items() if name != "le")
            moves = family.name.startswith("process_") or "telemetry" in family.name or ("route", "/metrics") in labels
            if moves or f"{family.name}_total" in METRICS or family.name in METRICS:  # or is there under its old name
                continue
            if family.type == "histogram":
                point = points[family.name, labels]
                if sample.name.endswith("_bucket"):
                    edges = [*point.explicit_bounds, math.inf]
                    upto = sum(
                        count
                        for count, edge in zip(point.bucket_counts, edges, strict=True)
                        if edge <= float(sample.labels["le"])
                    )
                    compared += 1
                    if labels != {("route", "other")}:
                        assert upto == sample.value
                elif sample.name.endswith("_sum") and labels != {("route", "other")}:
                    assert point.sum == pytest.approx(sample.value)
            else:
                compared += 1
                assert number(points[sample.name, labels]) == pytest.approx(sample.value), sample
    assert compared > 200


def test_lines_of_the_log_come_with_their_trace(collector: Collector, repository: Path) -> None:
    """Those of the program as text, those of requests as documents; what sending says of itself stays here."""
    server = Running(repository, otlp_endpoint=collector.url, otlp_signals="traces,logs", request_log="true")
    with server:
        server.wait_ready()
        server.http.post("/predict", content=PNG, headers=IMAGE | {"traceparent": f"00-{TRACE}-{PARENT}-01"})

        def found() -> list[tuple[str, Any]]:
            return [
                (of_scope.scope.name, record)
                for message in collector.messages("/v1/logs")
                for of_resource in message.resource_logs
                for of_scope in of_resource.scope_logs
                for record in of_scope.log_records
            ]

        eventually(lambda: any(name == "awnet.requests" for name, _ in found()))
        lines = found()
    ((request,),) = [[record for name, record in lines if name == "awnet.requests"]]
    assert request.trace_id.hex() == TRACE
    assert request.span_id.hex() in {span.span_id for span in collector.spans()}
    assert value(request.body)["route"] == "/predict" and value(request.body)["stages"].keys() == {
        "decode",
        "queue",
        "inference",
    }
    texts = [value(record.body) for name, record in lines if name == "awnet"]
    assert any("ready: awnet version 1" in text for text in texts)
    assert not any(name.startswith(("opentelemetry", "urllib3")) for name, _ in lines)


@pytest.mark.slow
def test_of_several_workers_each_sends_its_spans_and_one_the_metrics(collector: Collector, repository: Path) -> None:
    """Spans name their worker; metrics are those of the whole service, in one stream under one name."""
    signals = "traces,metrics"
    with Running(
        repository, workers=2, otlp_endpoint=collector.url, otlp_signals=signals, otlp_metrics_seconds=1
    ) as server:
        server.wait_ready()
        eventually(lambda: "2 of 2 do" in server.text())
        sent = 0

        def both() -> bool:
            nonlocal sent
            for _ in range(8):
                httpx.post(f"{server.url}/predict", content=PNG, headers=IMAGE)
                sent += 1
            eventually(lambda: len(collector.traces()) == sent)
            return len({span.resource["awnet.worker"] for span in collector.spans()}) == 2

        eventually(both)
        predicted = ("awnet_request_seconds", frozenset({("route", "/predict")}))
        eventually(lambda: exported(collector)[predicted].count == sent)
    resources = {span.resource["awnet.worker"]: span.resource for span in collector.spans()}
    assert len({resource["service.instance.id"] for resource in resources.values()}) == 2
    assert len({resource["process.pid"] for resource in resources.values()}) == 2
    of_metrics = {
        values(resource.resource.attributes)["service.instance.id"]
        for message in collector.messages("/v1/metrics")
        for resource in message.resource_metrics
    }
    assert len(of_metrics) == 1


def test_findings_are_events_whose_body_is_the_document(collector: Collector) -> None:
    """Sent in their order with their own times; a collector that does not take them is an error, so that they wait."""
    counts: list[tuple[str, str, int]] = []
    exporting = Exporting(
        collector.url,
        ["findings"],
        ratio=1.0,
        follow=True,
        scheme="http",
        worker=None,
        instance="i",
        metrics_seconds=60,
        count=lambda *counted: counts.append(counted),
    )
    (delivery,) = exporting.receivers()
    lines = [orjson.dumps({"class_uid": 2004, "time": 1_700_000_000_000 + n, "deep": {"list": [n]}}) for n in range(3)]

    async def story() -> None:
        await delivery.send(lines)
        collector.status = 400
        with pytest.raises(DeliveryError):
            await delivery.send(lines)
        await delivery.close()
        await exporting.stop(1)

    asyncio.run(story())
    (message,) = collector.messages("/v1/logs")
    records = message.resource_logs[0].scope_logs[0].log_records
    assert [value(record.body) for record in records] == [orjson.loads(line) for line in lines]
    assert [record.time_unix_nano for record in records] == [(1_700_000_000_000 + n) * 1_000_000 for n in range(3)]
    assert {record.event_name for record in records} == {"ocsf.detection_finding"}
