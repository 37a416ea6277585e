"""Writes metrics as Prometheus text or OpenMetrics for scrapes, and as JSON between workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.samples import Exemplar as PrometheusExemplar
from prometheus_client.samples import Sample as PrometheusSample

from ..settings.renames import METRICS
from .clients import Client
from .detection import Monitor
from .snapshot import ClientCount, Exemplar, Family, Sample, Snapshot, Total

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Families(Protocol):
    """Metrics with their values; a registry is one."""

    def collect(self) -> Iterable[Metric]: ...


@dataclass(frozen=True, slots=True)
class Counted:
    """Metrics of one process or several, and the client list that no label may carry.

    Attributes:
        clients: those with flagged images, most first.
        flagged_images: of all clients.
    """

    families: Families
    clients: Sequence[Client]
    flagged_images: int


def exposition(families: Families, accept: str, exemplars: bool = True) -> tuple[bytes, str]:
    """What Prometheus scrapes, and its content type: OpenMetrics where `accept` has it, with exemplars if wanted.

    Renamed metrics come at the end once more, under their old names.
    """
    source: Any = _WithOldNames(families)
    if "application/openmetrics-text" in accept:
        source = source if exemplars else _WithoutExemplars(source)
        text: bytes = openmetrics.generate_latest(source)  # type: ignore[no-untyped-call]
        return text, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(source), CONTENT_TYPE


def snapshot(
    registry: CollectorRegistry,
    modes: Mapping[str, str],
    monitor: Monitor,
    models: dict[str, Any] | None = None,
    verdict_history: Sequence[tuple[int, list[int]]] = (),
) -> Snapshot:
    """What this process has counted and what it serves, for the other processes."""
    families = [
        Family(family.name, family.type, modes[family.name], family.documentation, list(map(_sample, family.samples)))
        for family in registry.collect()
    ]
    clients = [ClientCount(c.name, c.flagged, c.max_overcount) for c in monitor.clients.top(len(monitor.clients))]
    return Snapshot(
        families,
        monitor.cusum_counts(),
        monitor.uncalibrated_counts(),
        clients,
        monitor.clients.total,
        [(watch.model.name, str(watch.model.version)) for watch in monitor],
        list(verdict_history),
        models or {},
    )


def counted_by_all(total: Total) -> Counted:
    """What all workers have counted, as it is exported."""
    return Counted(_Merged(total.families), [Client(*client) for client in total.clients], total.flagged_images)


def _sample(sample: PrometheusSample) -> Sample:
    given = sample.exemplar
    exemplar = None if given is None else Exemplar(given.labels, given.value, float(given.timestamp or 0.0))
    return Sample(sample.name, sample.labels, sample.value, exemplar)


class _WithOldNames:
    """Families, and those of `settings.renames.METRICS` again under their old names."""

    def __init__(self, families: Families) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        found = list(self._families.collect())
        yield from found
        by_name = {f"{family.name}_total" if family.type == "counter" else family.name: family for family in found}
        for old, new in METRICS.items():
            if new in by_name:
                family = by_name[new]
                again = Metric(
                    old.removesuffix("_total"), f"Old name of {new}; goes with the next release.", family.type
                )
                again.samples = [sample._replace(name=old) for sample in family.samples]
                yield again


class _WithoutExemplars:
    """Families whose samples name no request."""

    def __init__(self, families: Families) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families.collect():
            bare = Metric(family.name, family.documentation, family.type)
            bare.samples = [sample._replace(exemplar=None) for sample in family.samples]
            yield bare


class _Merged:
    """Families of other processes, in the place of a registry."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.help, family.kind)
            for name, labels, value, exemplar in family.samples:
                metric.add_sample(
                    name, labels, value, exemplar=None if exemplar is None else PrometheusExemplar(*exemplar)
                )
            yield metric
