"""What one worker has counted and what all have, as types, with their JSON for the link between processes.

Plain Python: the supervisor loads neither numpy nor the Prometheus client. `exposition` takes snapshots and exports
totals, `workers.metrics_merge` makes the one of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

# Rows are named tuples, which JSON writes as lists: a snapshot has some hundred of them, every second.


class Exemplar(NamedTuple):
    """A request whose value is counted in a sample; `timestamp` is in seconds since 1970."""

    labels: dict[str, str]
    value: float
    timestamp: float


class Sample(NamedTuple):
    """One series and its value."""

    name: str
    labels: dict[str, str]
    value: float
    exemplar: Exemplar | None = None


class Family(NamedTuple):
    """A metric with its samples.

    `mode` says how the values of several workers become one: `sum` (also of those that have gone), `livesum`,
    `livemax`, `livemin` (of those that live), `mean NAME` (weighted with the gauge NAME of the same model and version),
    `pooled WHAT` (`value`, `raised` or `alarms` of the CUSUM over the images of all), `adaptive WHAT` (likewise, and
    `usual`, of the CUSUMs of `adaptive_cusum.Uncalibrated`) or `service WHAT` (`clients`, `largest` or `started`: a
    figure of the service as a whole).
    """

    name: str
    kind: str
    mode: str
    help: str
    samples: list[Sample]


class CusumCounts(NamedTuple):
    """What a worker's CUSUM of one flag was made of, see `cusum.Cusum`; `images` are those that count in it."""

    model: str
    version: str
    sha256: str
    flag: str
    target: float
    limit: float
    images: int
    flagged: int


class UncalibratedCounts(NamedTuple):
    """What a worker's `adaptive_cusum.Uncalibrated` was made of.

    `images` are all images; `suspicious` and `adversarial` the uncalibrated ones over these thresholds.
    """

    model: str
    version: str
    sha256: str
    limit: float
    images: int
    uncalibrated: int
    suspicious: int
    adversarial: int


class ClientCount(NamedTuple):
    """Flagged images of one client, under its salted hash; see `clients.Client`."""

    name: str
    flagged: int
    max_overcount: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one worker counts and serves.

    Attributes:
        number: how many snapshots it made before.
        clients: all that it counts, largest first; `flagged_images` are those of all clients.
        open_versions: (model, version) of each open version.
        verdict_history: (slot, counts of verdicts), see `verdict_history.VerdictHistory.state`.
        models: `versions.models.Models.state`.
    """

    families: list[Family]
    cusums: list[CusumCounts] = field(default_factory=list)
    uncalibrated: list[UncalibratedCounts] = field(default_factory=list)
    clients: list[ClientCount] = field(default_factory=list)
    flagged_images: int = 0
    open_versions: list[tuple[str, str]] = field(default_factory=list)
    verdict_history: list[tuple[int, list[int]]] = field(default_factory=list)
    models: dict[str, Any] = field(default_factory=dict)
    number: int = 0

    def to_json(self) -> dict[str, Any]:
        return _to_json(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Snapshot:
        return cls(
            **{
                **document,
                "families": _families(document["families"]),
                "cusums": [CusumCounts(*row) for row in document["cusums"]],
                "uncalibrated": [UncalibratedCounts(*row) for row in document["uncalibrated"]],
                "clients": [ClientCount(*row) for row in document["clients"]],
                "open_versions": [(model, version) for model, version in document["open_versions"]],
                "verdict_history": [(slot, counts) for slot, counts in document["verdict_history"]],
            }
        )


@dataclass(frozen=True, slots=True)
class Total:
    """What all workers have counted; `clients` are largest first."""

    families: list[Family]
    clients: list[ClientCount]
    flagged_images: int

    def to_json(self) -> dict[str, Any]:
        return _to_json(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Total:
        clients = [ClientCount(*row) for row in document["clients"]]
        return cls(_families(document["families"]), clients, document["flagged_images"])


def _to_json(given: Snapshot | Total) -> dict[str, Any]:
    return {part.name: getattr(given, part.name) for part in fields(given)}


def _families(rows: list[list[Any]]) -> list[Family]:
    return [
        Family(name, kind, mode, text, [_sample(*sample) for sample in samples])
        for name, kind, mode, text, samples in rows
    ]


def _sample(name: str, labels: dict[str, str], value: float, exemplar: list[Any] | None) -> Sample:
    return Sample(name, labels, value, None if exemplar is None else Exemplar(*exemplar))
