"""The families of the Prometheus exposition as OpenTelemetry's metrics: the same names, labels, values and exemplars.

After "Prometheus and OpenMetrics Compatibility" of OpenTelemetry's specification: counters are monotonic sums since the
service's start; histograms keep their edges, of which the last is infinite.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

START = "process_start_time_seconds"  # of the service, where several workers are one
CUMULATIVE = AggregationTemporality.CUMULATIVE


class Family(Protocol):
    """A metric of the Prometheus client with its samples."""

    name: str
    documentation: str
    type: str
    samples: list[Any]


def metrics_data(
    families: Sequence[Family], now_ns: int, resource: Resource, scope: InstrumentationScope
) -> MetricsData:
    """What one export holds; `now_ns` is when `families` were collected, in nanoseconds since 1970."""
    started = next((family.samples[0].value for family in families if family.name == START and family.samples), 0.0)
    start_ns = min(int(1e9 * started), now_ns) or now_ns
    metrics = [_metric(family, start_ns, now_ns) for family in families if family.samples]
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(scope, metrics, "")], "")])


def _metric(family: Family, start_ns: int, now_ns: int) -> Metric:
    data: Sum | Gauge | Histogram
    name = family.name
    if family.type == "histogram":
        data = Histogram(_histograms(family, start_ns, now_ns), CUMULATIVE)
    elif family.type == "counter":
        name = f"{name}_total"
        points = [
            NumberDataPoint(s.labels, start_ns, now_ns, s.value, _exemplars([s]))
            for s in family.samples
            if s.name == name
        ]
        data = Sum(points, CUMULATIVE, is_monotonic=True)
    else:
        data = Gauge([NumberDataPoint(s.labels, start_ns, now_ns, s.value) for s in family.samples])
    return Metric(name, family.documentation, "", data)


def _histograms(family: Family, start_ns: int, now_ns: int) -> list[HistogramDataPoint]:
    """One point for each set of labels."""
    buckets: dict[tuple[tuple[str, str], ...], list[Any]] = defaultdict(list)
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in family.samples:
        labels = tuple((name, value) for name, value in sample.labels.items() if name != "le")
        if sample.name.endswith("_bucket"):
            buckets[labels].append(sample)
        elif sample.name.endswith("_sum"):
            sums[labels] = sample.value
    points = []
    for labels, samples in buckets.items():
        samples.sort(key=lambda sample: float(sample.labels["le"]))
        cumulative = [int(sample.value) for sample in samples]
        counts = [count - before for count, before in zip(cumulative, [0, *cumulative[:-1]], strict=True)]
        edges = [float(sample.labels["le"]) for sample in samples[:-1]]
        unknown: Any = None  # least and largest value: the fields are optional on the wire
        points.append(
            HistogramDataPoint(
                *(dict(labels), start_ns, now_ns, cumulative[-1], sums.get(labels, 0.0)),
                *(counts, edges, unknown, unknown, _exemplars(samples)),
            )
        )
    return points


def _exemplars(samples: Iterable[Any]) -> list[Exemplar]:
    """Those of samples; the ids of trace and span have fields of their own."""
    found = []
    for given in (sample.exemplar for sample in samples if sample.exemplar is not None):
        ids = dict(given.labels)
        trace_id, span_id = ids.pop("trace_id", None), ids.pop("span_id", None)
        if trace_id is not None and span_id is None:
            ids["trace_id"] = trace_id  # the fields are set both or not at all
        both = trace_id is not None and span_id is not None
        found.append(
            Exemplar(
                ids,
                given.value,
                int(1e9 * float(given.timestamp or 0)),
                int(span_id, 16) if both else None,
                int(trace_id, 16) if both else None,
            )
        )
    return found
