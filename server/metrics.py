"""Every Prometheus metric: name, help, labels. Labels come from closed sets, so the number of series is bounded."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from server.engine import Model, Signals
from server.verdict import VERDICTS, Verdict

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"

_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SCORES = (1e-4, 1e-3, 0.01, *(n / 20 for n in range(1, 20)), 0.99, 0.999, 1.0)
_IMAGES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of all series, and no query reads them


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self, waiting: Callable[[], int], capacity: int) -> None:
        self._registry = registry = CollectorRegistry()
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
        self._decode, self._queue, self._inference = map(stages.labels, ("decode", "queue", "inference"))
        self._batch = Histogram(
            "awnet_batch_images", "Images in one execution of the model.", buckets=_IMAGES, registry=registry
        )
        self._verdicts = Counter("awnet_verdicts", "Verdicts given.", ["model", "verdict"], registry=registry)
        self._scores = Histogram("awnet_score", "Scores P(adversarial).", ["model"], buckets=_SCORES, registry=registry)
        self._thresholds = Gauge(
            "awnet_threshold", "Score above which the verdict is given.", ["model", "verdict"], registry=registry
        )
        self._rejections = Counter(
            "awnet_rejections", "Requests to /predict that were not answered, by reason.", ["reason"], registry=registry
        )
        self._up = Gauge("awnet_engine_up", "1 after the golden self-test has passed, else 0.", registry=registry)
        self._model_info = Gauge("awnet_model_info", "1 for the model served.", ["model", "version"], registry=registry)
        Gauge("awnet_queue_images", "Images accepted and unanswered.", registry=registry).set_function(waiting)
        Gauge("awnet_queue_capacity_images", "Most images accepted and unanswered.", registry=registry).set(capacity)
        # Looking a labelled child up costs more than counting it, and there are only a few.
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._verdict_children: dict[Verdict, Counter] = {}
        self._score_child: Histogram | None = None

    def request(self, route: str, method: str, code: int, seconds: float) -> None:
        """One answered request; `route` is a template, never a path."""
        key = (route, method if method in METHODS else OTHER, code)
        children = self._children.get(key)
        if children is None:
            children = (self._requests.labels(route, key[1], str(code)), self._request_seconds.labels(route))
            self._children[key] = children
        children[0].inc()
        children[1].observe(seconds)

    def served(self, model: Model) -> None:
        """This model answers from now on."""
        self._score_child = self._scores.labels(model.name)
        self._verdict_children = {verdict: self._verdicts.labels(model.name, verdict) for verdict in VERDICTS}
        thresholds = model.contract.thresholds
        self._thresholds.labels(model.name, "suspicious").set(thresholds.suspicious.score)
        self._thresholds.labels(model.name, "adversarial").set(thresholds.adversarial.score)
        self._model_info.clear()
        self._model_info.labels(model.name, model.version).set(1)
        self._up.set(1)

    def stopped(self) -> None:
        """No model answers any more."""
        self._up.set(0)

    def batch(self, images: int) -> None:
        """One execution of the model."""
        self._batch.observe(images)

    def stages(self, signals: Signals) -> None:
        """Where one request's time went."""
        self._decode.observe(signals.decode_seconds)
        self._queue.observe(signals.queue_seconds)
        self._inference.observe(signals.inference_seconds)

    def verdict(self, verdict: Verdict, score: float) -> None:
        """One judged image; call `served` first."""
        self._verdict_children[verdict].inc()
        assert self._score_child is not None
        self._score_child.observe(score)

    def rejection(self, reason: str) -> None:
        """One request that was not answered; `reason` is an error's slug."""
        self._rejections.labels(reason).inc()

    def text(self) -> bytes:
        """The exposition that Prometheus scrapes."""
        return generate_latest(self._registry)
