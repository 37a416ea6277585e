"""Writes metrics as Prometheus text or OpenMetrics for scrapes, and as JSON between workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.samples import Exemplar

from ..renames import METRICS
from .clients import Client

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


def exposition(families: Families, accept: str) -> tuple[bytes, str]:
    """What Prometheus scrapes, and its content type: OpenMetrics with exemplars where `accept` has it.

    Renamed metrics come at the end once more, under their old names.
    """
    source: Any = _WithOldNames(families)
    if "application/openmetrics-text" in accept:
        text: bytes = openmetrics.generate_latest(source)  # type: ignore[no-untyped-call]
        return text, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(source), CONTENT_TYPE


def as_json(registry: CollectorRegistry, modes: Mapping[str, str]) -> list[list[Any]]:
    """The families of a worker for `workers.metrics_merge`; plain lists and dicts that JSON takes."""
    return [
        [
            *(family.name, family.type, modes[family.name], family.documentation),
            [
                [sample.name, sample.labels, sample.value, None if sample.exemplar is None else list(sample.exemplar)]
                for sample in family.samples
            ],
        ]
        for family in registry.collect()
    ]


def from_json(document: Mapping[str, Any]) -> Counted:
    """What all workers have counted, from `workers.metrics_merge.Totals.document`."""
    clients = [Client(entry["client"], entry["flagged"], entry["most_too_many"]) for entry in document["clients"]]
    return Counted(_Merged(document["families"]), clients, document["flagged_images"])


class _WithOldNames:
    """Families, and those of `renames.METRICS` again under their old names."""

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


class _Merged:
    """Families of other processes, in the place of a registry."""

    def __init__(self, families: Iterable[list[Any]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for name, kind, text, samples in self._families:
            metric = Metric(name, text, kind)
            for sample, labels, value, exemplar in samples:
                metric.add_sample(sample, labels, value, exemplar=None if exemplar is None else Exemplar(*exemplar))
            yield metric
