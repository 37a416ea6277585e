"""The metrics of the query guard, and of findings: what a security team is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from ..findings.delivery import Result as Delivered
from ..findings.finding import ACTIVITIES, KINDS, Activity, Kind
from ..findings.quarantine import Result as Quarantined
from ..guard.guard import WHO, Repeats, Who

GuardResult = Literal["alone", "similar", "repeated"]
GUARD_RESULTS: tuple[GuardResult, ...] = ("alone", "similar", "repeated")


class GuardMetrics:
    """Registered in `registry`; see `metrics.Metrics`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        images = Counter(
            "awnet_query_guard_images",
            "Images, by the query guard: alone, similar to others of their client, or repeated too often.",
            ["result"],
            registry=registry,
        )
        self._images = {result: images.labels(result) for result in GUARD_RESULTS}
        events = Counter(
            "awnet_query_guard_events",
            "Times that somebody asked about nearly the same image too often: a client, or all together.",
            ["who"],
            registry=registry,
        )
        self._events = {who: events.labels(who) for who in WHO}

    def looked(self, found: Iterable[Repeats]) -> None:
        """What the query guard says of the images of one request."""
        for repeats in found:
            result: GuardResult = "repeated" if repeats.repeated else "similar" if repeats.similar > 1 else "alone"
            self._images[result].inc()

    def event(self, who: Who) -> None:
        """The query guard told of a client, or of all together."""
        self._events[who].inc()


class FindingsMetrics:
    """Registered in `registry`; see `metrics.Metrics`. Series begin where there are findings."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = Counter(
            "awnet_findings",
            "Events of findings, which are put together from what one client did: create, update, close.",
            ["kind", "activity"],
            registry=registry,
        )
        self._lost = Counter(
            "awnet_findings_lost",
            "What should have been in a finding, or a finding's event, and found no room: too much at once, or a disk "
            "that takes nothing.",
            registry=registry,
        )
        self._images = Counter(
            "awnet_findings_images",
            "Images that were to be kept for evidence: kept, or lost, because there was no room in memory or the disk "
            "took nothing.",
            ["result"],
            registry=registry,
        )
        self._delivery = Counter(
            "awnet_findings_delivery",
            "Lines of the journal of findings by receiver: sent, failed (they are sent again), or no longer kept when "
            "their turn came (lost).",
            ["to", "result"],
            registry=registry,
        )
        self._waiting = Gauge(
            "awnet_findings_waiting",
            "Lines of the journal that a receiver does not have yet.",
            ["to"],
            registry=registry,
            multiprocess_mode="livesum",
        )

    def expect(self) -> None:
        """There are findings: their events are counted from 0 on."""
        for kind in KINDS:
            for activity in ACTIVITIES:
                self._events.labels(kind, activity)

    def expect_images(self) -> None:
        """Flagged images are kept: they are counted from 0 on."""
        for result in get_args(Quarantined):
            self._images.labels(result)

    def image(self, result: Quarantined) -> None:
        """An image was to be kept; on any thread."""
        self._images.labels(result).inc()

    def deliver(self, waiting: Callable[[], Mapping[str, int]]) -> None:
        """Findings are sent to these receivers; `waiting` says how many lines each does not have."""
        for to in waiting():
            for result in get_args(Delivered):
                self._delivery.labels(to, result)
            self._waiting.labels(to).set_function(partial(_of, waiting, to))

    def delivered(self, to: str, result: Delivered, number: int) -> None:
        """So many lines of the journal, to a receiver."""
        self._delivery.labels(to, result).inc(number)

    def event(self, kind: Kind, activity: Activity) -> None:
        """One event of a finding."""
        self._events.labels(kind, activity).inc()

    def lost(self, number: int) -> None:
        """So many observations or events found no room."""
        self._lost.inc(number)


def _of(counts: Callable[[], Mapping[str, int]], name: str) -> int:
    return counts()[name]
