"""The values of `detection` as Prometheus metrics, read when they are scraped, and the report made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .adaptive_cusum import OF
from .clients import TOP
from .detection import FLAGS, Monitor
from .exposition import Counted

_Put = Callable[[dict[str, Any], Mapping[str, str], float], None]


class _Family(NamedTuple):
    """One metric. `mode`: how the values of several workers become one; see `snapshot.Family`."""

    kind: type[GaugeMetricFamily] | type[CounterMetricFamily]
    name: str
    labels: tuple[str, ...]
    mode: str
    help: str


_VERSION = ("model", "version")
_VERDICT = (*_VERSION, "verdict")
_OF = (*_VERSION, "of")
_SCORE_IMAGES, _OMEGA_IMAGES = "awnet_score_drift_images", "awnet_omega_drift_images"

# Both drifts are convex in the distribution that they measure, so the mean over workers, weighted with their images, is
# at least the drift of all images together.
_FAMILIES = {
    "target": _Family(
        GaugeMetricFamily,
        "awnet_target_fpr_ratio",
        _VERDICT,
        "livemax",
        "Share of clean validation images over this threshold: what to expect when nobody attacks.",
    ),
    "cusum": _Family(
        GaugeMetricFamily,
        "awnet_cusum",
        _VERDICT,
        "pooled value",
        "CUSUM of flagged images against the target rate; the alarm is raised at awnet_cusum_limit.",
    ),
    "limit": _Family(
        GaugeMetricFamily, "awnet_cusum_limit", _VERDICT, "livemax", "CUSUM value at which the alarm is raised."
    ),
    "raised": _Family(
        GaugeMetricFamily,
        "awnet_cusum_raised",
        _VERDICT,
        "pooled raised",
        "1 from the CUSUM's reaching its limit until it is below half of that, else 0.",
    ),
    "alarms": _Family(
        CounterMetricFamily,
        "awnet_cusum_alarms",
        _VERDICT,
        "pooled alarms",
        "Times that the CUSUM reached its limit.",
    ),
    "watched": _Family(
        CounterMetricFamily,
        "awnet_watched_images",
        (*_VERSION, "calibrated", "verdict"),
        "sum",
        "Images judged; only calibrated ones count in the CUSUM and the score drift.",
    ),
    "reasons": _Family(
        CounterMetricFamily,
        "awnet_uncalibrated_images",
        (*_VERSION, "why"),
        "sum",
        "Images for which the thresholds do not speak, by the reason that the answer gives.",
    ),
    "uncalibrated": _Family(
        GaugeMetricFamily,
        "awnet_uncalibrated_cusum_ratio",
        _OF,
        "adaptive value",
        "CUSUM of a share against what was usual, as a part of its limit; the alarm is raised at 1.",
    ),
    "uncalibrated_raised": _Family(
        GaugeMetricFamily,
        "awnet_uncalibrated_cusum_raised",
        _OF,
        "adaptive raised",
        "1 from that CUSUM's reaching its limit until it is below half of that or an hour has passed, else 0.",
    ),
    "uncalibrated_alarms": _Family(
        CounterMetricFamily,
        "awnet_uncalibrated_cusum_alarms",
        _OF,
        "adaptive alarms",
        "Times that that CUSUM reached its limit.",
    ),
    "usual": _Family(
        GaugeMetricFamily,
        "awnet_uncalibrated_usual_ratio",
        _OF,
        "adaptive usual",
        "The share that was usual, as learnt; there is none for the first hour and the first 500 images.",
    ),
    "score": _Family(
        GaugeMetricFamily,
        "awnet_score_drift",
        _VERSION,
        f"mean {_SCORE_IMAGES}",
        "Population stability index of recent scores against clean validation images.",
    ),
    "score_images": _Family(
        GaugeMetricFamily,
        _SCORE_IMAGES,
        _VERSION,
        "livesum",
        "Images that the score drift rests on, at equal weight.",
    ),
    "omega": _Family(
        GaugeMetricFamily,
        "awnet_omega_drift",
        (*_VERSION, "block"),
        f"mean {_OMEGA_IMAGES}",
        "Distance of a block's recent mean omega from the clean one, in clean standard deviations.",
    ),
    "omega_images": _Family(
        GaugeMetricFamily,
        _OMEGA_IMAGES,
        _VERSION,
        "livesum",
        "Samples that the omega drift rests on, at equal weight.",
    ),
    "golden_probes": _Family(
        CounterMetricFamily,
        "awnet_golden_probes",
        (*_VERSION, "expected", "result"),
        "sum",
        "Golden images sent through the real path, by the verdict they must get and how the answer was.",
    ),
    "detection": _Family(
        GaugeMetricFamily,
        "awnet_golden_probe_detection_ratio",
        _VERSION,
        "livemin",  # one worker that has gone blind is not hidden by the others
        "Share of the last attacked golden images that were recognised.",
    ),
    "clients": _Family(
        GaugeMetricFamily,
        "awnet_flagged_clients",
        (),
        "service clients",
        "Clients with flagged images in the bounded top list.",
    ),
    "largest": _Family(
        GaugeMetricFamily,
        "awnet_flagged_largest_client_ratio",
        (),
        "service largest",
        "Share of flagged images that a single client sent, at least.",
    ),
}


class DetectionCollector(Collector):
    """Register it: `registry.register(DetectionCollector(monitor))`."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def describe(self) -> Iterable[Metric]:
        """Names and types, so that registering does not read the values."""
        return self.families()

    def families(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """Every metric without its values, with the names of its labels."""
        return _empty().values()

    def collect(self) -> Iterator[Metric]:
        """Every value as it is now."""
        families = _empty()
        for watch in self._monitor:
            which = (watch.model.name, str(watch.model.version))
            thresholds = watch.model.contract.thresholds
            for flag in FLAGS:
                cusum = watch.cusums[flag]
                families["target"].add_metric((*which, flag), getattr(thresholds, flag).fpr)
                families["cusum"].add_metric((*which, flag), cusum.value)
                families["limit"].add_metric((*which, flag), cusum.limit)
                families["raised"].add_metric((*which, flag), cusum.raised)
                families["alarms"].add_metric((*which, flag), cusum.alarms)
            for (calibrated, verdict), count in watch.images.items():
                families["watched"].add_metric((*which, "true" if calibrated else "false", verdict), count)
            for why, count in watch.reasons.items():
                families["reasons"].add_metric((*which, why), count)
            for of in OF:
                adaptive = watch.uncalibrated.state(of)
                families["uncalibrated"].add_metric((*which, of), adaptive.value)
                families["uncalibrated_raised"].add_metric((*which, of), adaptive.raised)
                families["uncalibrated_alarms"].add_metric((*which, of), adaptive.alarms)
                if adaptive.usual is not None:
                    families["usual"].add_metric((*which, of), adaptive.usual)
            families["score"].add_metric(which, watch.scores.value)
            families["score_images"].add_metric(which, watch.scores.images)
            for block, value in watch.omega.values().items():
                families["omega"].add_metric((*which, block), value)
            families["omega_images"].add_metric(which, watch.omega.images)
            for (expected, result), count in watch.golden_probes.items():
                families["golden_probes"].add_metric((*which, expected, result), count)
            if not math.isnan(watch.detection):
                families["detection"].add_metric(which, watch.detection)
        families["clients"].add_metric((), len(self._monitor.clients))
        families["largest"].add_metric((), self._monitor.clients.largest_share)
        yield from families.values()


def modes() -> dict[str, str]:
    """The mode of each family, by name."""
    return {family.name: family.mode for family in _FAMILIES.values()}


def report(counted: Counted) -> dict[str, object]:
    """For the admin port: what is exported of each version, and the clients that no label may name."""
    models: dict[tuple[str, str], dict[str, Any]] = {}
    for family in counted.families.collect():
        if (put := _REPORTED.get(family.name)) is None:
            continue
        for sample in family.samples:
            model, version = sample.labels["model"], sample.labels["version"]
            entry = models.setdefault(
                (model, version),
                {"model": model, "version": version, "calibrated_images": 0, "uncalibrated_images": 0}
                | {"cusum": {}, "uncalibrated": {}, "score_drift": 0.0, "omega_drift": {}, "golden_probes": {}},
            )
            put(entry, sample.labels, sample.value)
    for entry in models.values():
        entry["golden_probes"] = dict(sorted(entry["golden_probes"].items()))
        entry["canaries"] = entry["golden_probes"]  # old name, for one release
    return {
        "models": list(models.values()),
        "clients": [
            {"client": c.name, "flagged": c.flagged, "most_too_many": c.max_overcount} for c in counted.clients[:TOP]
        ],
        "flagged_images": counted.flagged_images,
    }


def _cusum(what: str, kind: type, of: str = "cusum", label: str = "verdict") -> _Put:
    def put(entry: dict[str, Any], labels: Mapping[str, str], value: float) -> None:
        entry[of].setdefault(labels[label], {})[what] = kind(value)

    return put


def _uncalibrated(what: str, kind: type) -> _Put:
    return _cusum(what, kind, "uncalibrated", "of")


def _watched(entry: dict[str, Any], labels: Mapping[str, str], value: float) -> None:
    entry["calibrated_images" if labels["calibrated"] == "true" else "uncalibrated_images"] += int(value)


def _score(entry: dict[str, Any], labels: Mapping[str, str], value: float) -> None:
    entry["score_drift"] = value


def _omega(entry: dict[str, Any], labels: Mapping[str, str], value: float) -> None:
    entry["omega_drift"][labels["block"]] = value


def _golden_probes(entry: dict[str, Any], labels: Mapping[str, str], value: float) -> None:
    entry["golden_probes"][f"{labels['expected']}:{labels['result']}"] = int(value)


_REPORTED: dict[str, _Put] = {
    _FAMILIES[key].name: put
    for key, put in {
        "watched": _watched,
        "cusum": _cusum("value", float),
        "limit": _cusum("limit", float),
        "raised": _cusum("raised", bool),
        "alarms": _cusum("alarms", int),
        "uncalibrated": _uncalibrated("value", float),
        "uncalibrated_raised": _uncalibrated("raised", bool),
        "uncalibrated_alarms": _uncalibrated("alarms", int),
        "usual": _uncalibrated("usual", float),
        "score": _score,
        "omega": _omega,
        "golden_probes": _golden_probes,
    }.items()
}


def _empty() -> dict[str, GaugeMetricFamily | CounterMetricFamily]:
    return {key: family.kind(family.name, family.help, labels=family.labels) for key, family in _FAMILIES.items()}
