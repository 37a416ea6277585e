"""The values of `monitoring` as Prometheus metrics, read when they are scraped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.monitoring import FLAGS, Monitor

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
