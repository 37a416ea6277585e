"""Every Prometheus metric: name, help, labels. Labels come from closed sets, so the number of series is bounded.

Versions come and go; the series of one are dropped when it is closed. How the values of several workers become one is
the mode of each metric, see `snapshot.Family`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence, Set
from functools import cache, cached_property
from typing import NamedTuple, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.registry import Collector

from .. import __version__
from ..access.access import KeysRead
from ..core.engine import Model, Signals
from ..core.modes import Mode
from ..core.policy import DECISIONS, Decision, Policy
from ..core.trace import Trace
from ..core.verdict import VERDICTS, Judgement, Verdict
from ..errors import AWNetError, Forbidden, ImageRejected, Unauthorized
from ..ports.tls import CertificateRead
from ..versions.events import Events
from .detection import Monitor
from .detection_metrics import DetectionCollector
from .detection_metrics import modes as detection_modes
from .engine_metrics import EngineMetrics
from .findings_metrics import FindingsMetrics, GuardMetrics
from .rollout_metrics import RolloutMetrics, remove
from .unlocked import UnlockedCounter, UnlockedHistogram

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "GRPC"})
OTHER = "other"
PREDICTIONS = ("/predict", "/infer", "/ModelInfer")  # how the routes end whose seconds are told apart
CODES_FROM_THE_START = (200, 429, 500, 503, 504)  # `increase` does not see the first of a series that begins with it
EXEMPLAR_EVERY = 16  # requests; an exemplar costs twice what counting without one does
EXEMPLAR_SECONDS = 0.1  # a request this slow always leaves its id
EXEMPLAR_REQUEST_ID = 55  # a span's id has no room beside a longer one: OpenMetrics gives an exemplar 128 characters

_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# Finer where clean scores and thresholds lie; a quantile is only as exact as its bin.
_SCORES = (
    *(1e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 6e-3, 0.01, 0.02, 0.05),
    *(n / 10 for n in range(1, 10)),
    *(0.95, 0.99, 0.999, 1.0),
)
_IMAGES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SENDING_RESULTS = ("sent", "failed", "dropped")
_PROCESS_MODES = {
    "process_cpu_seconds": "sum",
    "process_virtual_memory_bytes": "livesum",
    "process_resident_memory_bytes": "livesum",
    "process_open_fds": "livemax",  # of the worker that has most, beside the limit of one
    "process_max_fds": "livemin",
    "process_start_time_seconds": "service started",
}

disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of all series, and no query reads them


class _Children(NamedTuple):
    """The series of one version that are counted with every answer."""

    verdicts: dict[Verdict, UnlockedCounter]
    modes: dict[Mode, UnlockedCounter]
    scores: UnlockedHistogram


class Metrics(Events):
    """The metrics of one process, in a registry of their own.

    Args:
        monitor: whose values are exported as well, read when they are scraped.
        capacity: most images accepted and unanswered.
        models: names of the configured models. Their counters begin at 0: no alert on an increase sees a series that
            begins at 1.
        golden_probe_seconds: how often golden probes are sent; 0 is never.

    Attributes:
        engine: those of the engine, its queue, and the processes that decode.
        findings: those of findings, which are put together, kept and sent.
        guard: those of the query guard.
        rollout: those of roles, reloads and the shadow; receives events, as this does.
    """

    def __init__(
        self, monitor: Monitor, capacity: int, models: Sequence[str] = (), golden_probe_seconds: float = 0.0
    ) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("awnet_requests", "Requests answered.", ["route", "method", "code"], registry=registry)
        self._request_seconds = Histogram(
            "awnet_request_seconds", "Request to answer, seconds.", ["route"], buckets=_SECONDS, registry=registry
        )
        stages = Histogram(
            "awnet_stage_seconds",
            "Seconds a request spent in a stage: decode, queue, inference.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._decode, self._queue, self._inference = (
            UnlockedHistogram(stages.labels(stage)) for stage in ("decode", "queue", "inference")
        )
        batch = Histogram(
            "awnet_batch_images", "Images in one execution of the model.", buckets=_IMAGES, registry=registry
        )
        self._batch = UnlockedHistogram(batch)
        self._verdicts = Counter(
            "awnet_verdicts", "Verdicts given.", ["model", "version", "verdict"], registry=registry
        )
        self._scores = Histogram(
            "awnet_score", "Scores P(adversarial).", ["model", "version"], buckets=_SCORES, registry=registry
        )
        self._mode_images = Counter(
            "awnet_mode_images", "Images answered, by operating mode.", ["model", "version", "mode"], registry=registry
        )
        self._decisions = Counter(
            "awnet_policy_decisions",
            "Images by what the policy of their request decided.",
            ["model", "policy", "decision"],
            registry=registry,
        )
        self._thresholds = Gauge(
            "awnet_threshold",
            "Score above which the verdict is given to images of the domain.",
            ["model", "version", "domain", "verdict"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._rejections = Counter(
            "awnet_rejections", "Requests that were not answered as asked, by reason.", ["reason"], registry=registry
        )
        self._keys_reads = Counter(
            "awnet_keys_reads",
            "Readings of a changed file of keys: loaded, or refused, where the keys from before stay.",
            ["result"],
            registry=registry,
        )
        self._certificate_end = Gauge(
            "awnet_certificate_expiry_timestamp_seconds",
            "End of the TLS certificate's validity, Unix time; 0 without TLS.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._certificate_reads = Counter(
            "awnet_certificate_reads",
            "Readings of changed files of the TLS certificate: loaded, or refused, where the one from before stays.",
            ["result"],
            registry=registry,
        )
        self.guard = GuardMetrics(registry)
        self.findings = FindingsMetrics(registry)
        self._telemetry = Counter(
            "awnet_telemetry_items",
            "Traces of requests, log lines and metrics for OTLP: sent, failed, or dropped where too many waited.",
            ["signal", "result"],
            registry=registry,
        )
        self.rollout = RolloutMetrics(registry, models)
        self.engine = EngineMetrics(registry, capacity)
        Gauge(
            "awnet_golden_probe_interval_seconds",
            "Seconds between two golden images of a version; 0 where none are sent.",
            registry=registry,
            multiprocess_mode="livemax",
        ).set(golden_probe_seconds)
        build = Gauge(
            "awnet_build_info",
            "1; what runs here.",
            ["version", "python"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        build.labels(__version__, platform.python_version()).set(1)
        # What is made of the verdicts over time, and the process itself under the names that everybody uses.
        registry.register(DetectionCollector(monitor))
        ProcessCollector(registry=registry)
        self._until_exemplar = 0
        # Looking a labelled child up costs more than counting it, and there are only a few.
        self._children: dict[tuple[str, str, int], tuple[UnlockedCounter, UnlockedHistogram]] = {}
        self._model_children: dict[tuple[str, int], _Children] = {}
        self._decided = cache(lambda *labels: UnlockedCounter(self._decisions.labels(*labels)))

    # Requests.

    def request(
        self,
        route: str,
        method: str,
        code: int,
        seconds: float,
        request_id: str | None = None,
        trace: Trace | None = None,
    ) -> None:
        """One answered request; `route` is a template, never a path. Some ids are kept as exemplars.

        Where requests are traced, each that is sampled leaves its ids, and of the others only the slow ones.
        """
        key = (route, method if method in METHODS else OTHER, code)
        children = self._children.get(key)
        if children is None:
            timed = route if route.endswith(PREDICTIONS) else OTHER  # a histogram is 18 series
            children = (
                UnlockedCounter(self._requests.labels(route, key[1], str(code))),
                UnlockedHistogram(self._request_seconds.labels(timed)),
            )
            self._children[key] = children
        children[0].inc()
        if request_id is not None and self._leaves_exemplar(seconds, trace):
            ids = {"request_id": request_id}
            if trace is not None and trace.sampled:
                ids["trace_id"] = trace.trace_id
                if len(request_id) <= EXEMPLAR_REQUEST_ID:
                    ids["span_id"] = trace.span_id
            children[1].series.observe(seconds, ids)
            return
        children[1].observe(seconds)

    def _leaves_exemplar(self, seconds: float, trace: Trace | None) -> bool:
        if seconds >= EXEMPLAR_SECONDS:
            self._until_exemplar = EXEMPLAR_EVERY - 1
            return True
        if trace is not None:
            return trace.sampled
        self._until_exemplar -= 1
        if self._until_exemplar < 0:
            self._until_exemplar = EXEMPLAR_EVERY - 1
            return True
        return False

    def expect(self, routes: Iterable[tuple[str, str]]) -> None:
        """Requests to these routes, by these methods, are counted from 0 on."""
        for route, method in routes:
            for code in CODES_FROM_THE_START:
                self._requests.labels(route, method, str(code))
            if route.endswith(PREDICTIONS) and "{version}" not in route:  # 18 series, and few name a version
                self._request_seconds.labels(route)

    def expect_rejections(self, *errors: type[AWNetError]) -> None:
        """These are counted from 0 on."""
        for error in errors:
            self._rejections.labels(error.slug)

    def expect_keys(self) -> None:
        """Callers are told apart by keys: what is refused for that is counted from 0 on."""
        self.expect_rejections(Unauthorized, Forbidden)
        for result in get_args(KeysRead):
            self._keys_reads.labels(result)

    def expect_telemetry(self, signals: Iterable[str]) -> None:
        """What is sent by OTLP is counted from 0 on."""
        for signal in signals:
            for result in SENDING_RESULTS:
                self._telemetry.labels(signal, result)

    def expect_decisions(self, model: str, policies: Set[Policy]) -> None:
        """Decisions of these policies on images for this model are counted from 0 on, and requests that they refuse."""
        if "reject" in policies:
            self._rejections.labels(ImageRejected.slug)
        for policy in policies:
            for decision in DECISIONS[policy]:
                self._decided(model, policy, decision)

    def batch(self, images: int) -> None:
        """One execution of the model."""
        self._batch.observe(images)

    def answered(
        self,
        model: Model,
        mode: Mode,
        judgements: Sequence[Judgement],
        policy: Policy,
        decisions: Sequence[Decision],
        signals: Signals,
    ) -> None:
        """The images of one request that `model` answered in `mode`, and where its time went."""
        children = self._model_children.get((model.name, model.version)) or self._children_of(model)
        children.modes[mode].inc(len(judgements))
        for judged, decision in zip(judgements, decisions, strict=True):
            children.verdicts[judged.verdict].inc()
            children.scores.observe(judged.score)
            self._decided(model.name, policy, decision).inc()
        if signals.cached:  # it has passed no stage
            return
        self._decode.observe(signals.decode_seconds)
        self._queue.observe(signals.queue_seconds)
        self._inference.observe(signals.inference_seconds)

    def rejection(self, reason: str) -> None:
        """One request that was not answered; `reason` is an error's slug."""
        self._rejections.labels(reason).inc()

    def keys_read(self, result: KeysRead) -> None:
        """The file of keys has changed and was read."""
        self._keys_reads.labels(result).inc()

    def follow_certificate(self, not_after: Callable[[], float]) -> None:
        """Ports speak TLS; `not_after` is the end of the certificate of this moment."""
        self._certificate_end.set_function(not_after)
        for result in get_args(CertificateRead):
            self._certificate_reads.labels(result)

    def certificate_read(self, result: CertificateRead) -> None:
        """Files of the certificate have changed and were read."""
        self._certificate_reads.labels(result).inc()

    def telemetry(self, signal: str, result: str, items: int) -> None:
        """What became of traces, lines or metrics that were to be sent; on any thread."""
        self._telemetry.labels(signal, result).inc(items)

    # `Events`: what happens to models.

    def opened(self, model: Model) -> None:
        self._children_of(model)
        for domain in model.contract.domains:
            which = (model.name, model.version, domain.name)
            self._thresholds.labels(*which, "suspicious").set(domain.thresholds.suspicious.score)
            self._thresholds.labels(*which, "adversarial").set(domain.thresholds.adversarial.score)

    def closed(self, model: Model) -> None:
        self._model_children.pop((model.name, model.version), None)
        for family, last in (
            (self._verdicts, VERDICTS),
            (self._mode_images, model.contract.modes),
        ):
            for value in last:
                remove(family, model.name, model.version, value)
        for domain in model.contract.domains:
            for verdict in VERDICTS[1:]:
                remove(self._thresholds, model.name, model.version, domain.name, verdict)
        remove(self._scores, model.name, model.version)

    # What leaves the process.

    def collectors(self) -> list[Collector]:
        """What makes up the exposition, for the page that documents it."""
        return list(self.registry._collector_to_names)

    @cached_property
    def modes(self) -> dict[str, str]:
        """How the values of several workers become one, by the name of each family; see `snapshot.Family`."""
        found = detection_modes() | _PROCESS_MODES
        for collector in self.collectors():
            if isinstance(collector, Gauge):
                found[collector._name] = collector._multiprocess_mode
            elif isinstance(collector, Counter | Histogram):
                found[collector._name] = "sum"
        return found

    def _children_of(self, model: Model) -> _Children:
        key = (model.name, model.version)
        found = self._model_children.get(key)
        if found is None:
            found = self._model_children[key] = _Children(
                {verdict: UnlockedCounter(self._verdicts.labels(*key, verdict)) for verdict in VERDICTS},
                {mode: UnlockedCounter(self._mode_images.labels(*key, mode)) for mode in model.contract.modes},
                UnlockedHistogram(self._scores.labels(*key)),
            )
        return found
