"""The values of `monitoring` as Prometheus metrics, read when they are scraped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .detection import FLAGS, Monitor

TOP = 20  # senders in a report
_VERSION = ("model", "version")


class DetectionCollector(Collector):
    """Register it: `registry.register(DetectionCollector(monitor))`."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def describe(self) -> Iterable[Metric]:
        """Names and types, so that registering does not read the values."""
        return self.families()

    def families(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """Every metric without its values, with the names of its labels."""
        return _families().values()

    def collect(self) -> Iterator[Metric]:
        """Every value as it is now."""
        families = _families()
        for watch in self._monitor:
            which = (watch.model.name, watch.model.version)
            thresholds = watch.model.contract.thresholds
            for flag in FLAGS:
                cusum = watch.cusums[flag]
                families["target"].add_metric((*which, flag), getattr(thresholds, flag).fpr)
                families["cusum"].add_metric((*which, flag), cusum.value)
                families["limit"].add_metric((*which, flag), cusum.limit)
                families["raised"].add_metric((*which, flag), cusum.raised)
                families["alarms"].add_metric((*which, flag), cusum.alarms)
            families["watched"].add_metric((*which, "true"), watch.calibrated)
            families["watched"].add_metric((*which, "false"), watch.uncalibrated)
            families["score"].add_metric(which, watch.scores.value)
            families["score_images"].add_metric(which, watch.scores.images)
            for block, value in watch.omega.values().items():
                families["omega"].add_metric((*which, block), value)
            families["omega_images"].add_metric(which, watch.omega.images)
            for (expected, result), count in watch.canaries.items():
                families["canaries"].add_metric((*which, expected, result), count)
            if not math.isnan(watch.detection):
                families["detection"].add_metric(which, watch.detection)
        families["clients"].add_metric((), len(self._monitor.clients))
        families["largest"].add_metric((), self._monitor.clients.largest_share)
        yield from families.values()


# How the values of several workers become one, see `totals`. Both drifts are convex in the distribution that they
# measure, so the mean over workers, weighted with their images, is at least the drift of all images together.
_MODES = {
    "target": "livemax",
    "cusum": "pooled",
    "limit": "livemax",
    "raised": "pooled",
    "alarms": "pooled",
    "watched": "sum",
    "score": "mean awnet_score_drift_images",
    "score_images": "livesum",
    "omega": "mean awnet_omega_drift_images",
    "omega_images": "livesum",
    "canaries": "sum",
    "detection": "livemin",  # one worker that has gone blind is not hidden by the others
    "clients": "service",
    "largest": "service",
}


def modes() -> dict[str, str]:
    """The mode of each family, by name."""
    return {family.name: _MODES[key] for key, family in _families().items()}


def report(document: Mapping[str, Any]) -> dict[str, object]:
    """`Monitor.report` of the whole service, from `totals.Totals.document`."""
    models: dict[tuple[str, str], dict[str, Any]] = {}
    for name, _, _, samples in document["families"]:
        for _, labels, value, _ in samples:
            if name not in _REPORTED:
                break
            entry = models.setdefault(
                (labels["model"], labels["version"]),
                {"model": labels["model"], "version": labels["version"], "calibrated_images": 0}
                | {"uncalibrated_images": 0, "cusum": {}, "score_drift": 0.0, "omega_drift": {}, "canaries": {}},
            )
            _REPORTED[name](entry, labels, value)
    return {
        "models": list(models.values()),
        "clients": document["clients"][:TOP],
        "flagged_images": document["flagged_images"],
    }


def _cusum(what: str, kind: type) -> Callable[[dict[str, Any], Mapping[str, str], float], None]:
    def put(entry: dict[str, Any], labels: Mapping[str, str], value: float) -> None:
        entry["cusum"].setdefault(labels["verdict"], {})[what] = kind(value)

    return put


def _watched(entry: dict[str, Any], labels: Mapping[str, str], value: float) -> None:
    entry["calibrated_images" if labels["calibrated"] == "true" else "uncalibrated_images"] = int(value)


def _score(entry: dict[str, Any], labels: Mapping[str, str], value: float) -> None:
    entry["score_drift"] = value


def _omega(entry: dict[str, Any], labels: Mapping[str, str], value: float) -> None:
    entry["omega_drift"][labels["block"]] = value


def _canaries(entry: dict[str, Any], labels: Mapping[str, str], value: float) -> None:
    entry["canaries"][f"{labels['expected']}:{labels['result']}"] = int(value)


_REPORTED = {
    "awnet_watched_images": _watched,
    "awnet_cusum": _cusum("value", float),
    "awnet_cusum_limit": _cusum("limit", float),
    "awnet_cusum_raised": _cusum("raised", bool),
    "awnet_cusum_alarms": _cusum("alarms", int),
    "awnet_score_drift": _score,
    "awnet_omega_drift": _omega,
    "awnet_golden_canaries": _canaries,
}


def _families() -> dict[str, GaugeMetricFamily | CounterMetricFamily]:
    def gauge(name: str, help_text: str, labels: tuple[str, ...]) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, help_text, labels=labels)

    def counter(name: str, help_text: str, labels: tuple[str, ...]) -> CounterMetricFamily:
        return CounterMetricFamily(name, help_text, labels=labels)

    return {
        "target": gauge(
            "awnet_target_fpr_ratio",
            "Share of clean validation images over this threshold: what to expect when nobody attacks.",
            (*_VERSION, "verdict"),
        ),
        "cusum": gauge(
            "awnet_cusum",
            "CUSUM of flagged images against the target rate; the alarm is raised at awnet_cusum_limit.",
            (*_VERSION, "verdict"),
        ),
        "limit": gauge("awnet_cusum_limit", "CUSUM value at which the alarm is raised.", (*_VERSION, "verdict")),
        "raised": gauge(
            "awnet_cusum_raised",
            "1 from the CUSUM's reaching its limit until it is below half of that, else 0.",
            (*_VERSION, "verdict"),
        ),
        "alarms": counter("awnet_cusum_alarms", "Times that the CUSUM reached its limit.", (*_VERSION, "verdict")),
        "watched": counter(
            "awnet_watched_images",
            "Images judged; only calibrated ones count in the CUSUM and the score drift.",
            (*_VERSION, "calibrated"),
        ),
        "score": gauge(
            "awnet_score_drift",
            "Population stability index of recent scores against clean validation images.",
            _VERSION,
        ),
        "score_images": gauge(
            "awnet_score_drift_images", "Images that the score drift rests on, at equal weight.", _VERSION
        ),
        "omega": gauge(
            "awnet_omega_drift",
            "Distance of a block's recent mean omega from the clean one, in clean standard deviations.",
            (*_VERSION, "block"),
        ),
        "omega_images": gauge(
            "awnet_omega_drift_images", "Samples that the omega drift rests on, at equal weight.", _VERSION
        ),
        "canaries": counter(
            "awnet_golden_canaries",
            "Golden images sent through the real path, by the verdict they must get and how the answer was.",
            (*_VERSION, "expected", "result"),
        ),
        "detection": gauge(
            "awnet_golden_canary_detection_ratio",
            "Share of the last attacked golden images that were recognised.",
            _VERSION,
        ),
        "clients": gauge("awnet_flagged_clients", "Senders of flagged images in the bounded top list.", ()),
        "largest": gauge(
            "awnet_flagged_largest_client_ratio", "Share of flagged images that a single sender sent, at least.", ()
        ),
    }
