"""What one process sends by OTLP: its spans, and where asked for, its log lines and the service's metrics.

The exporters are OpenTelemetry's, so that its variables hold for headers, certificates, compression and time limits.
Each signal is sent by a thread of its own: a collector that is down or hangs delays nobody.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import requests
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.resources import Attributes, OTELResourceDetector, Resource
from opentelemetry.sdk.trace.export import SpanExportResult

from .. import __version__
from ..core.trace import Trace
from ..errors import LinkLost
from ..findings.delivery import Delivery
from ..monitoring.exposition import Counted
from ..monitoring.request import Headers
from ..monitoring.request_log import LOGGER, Record
from .logs import Line, LineHandler, LogDelivery, log_record
from .metrics import metrics_data
from .sender import Result, Sender
from .spans import SCOPE, Ended, Spans
from .tracing import Sampler

WAITING_TRACES, WAITING_LINES, WAITING_METRICS = 2048, 2048, 1
BATCH = 256  # traces or lines in one export
EVERY_SECONDS = 1.0
FLUSH_SECONDS = 5.0  # at the end of the process, for what waits
MIN_FLUSH_SECONDS = 0.5

log = logging.getLogger("awnet.telemetry")


class Exporting:
    """`monitoring.request.Telemetry` by OTLP over HTTP.

    Args:
        endpoint: URL of the collector; `/v1/traces` and so on are added.
        signals: what is sent.
        ratio, follow: see `Sampler`.
        scheme: of the requests, `http` or `https`.
        worker: number of this process where there are several; the first one sends the metrics of all.
        instance: names the service, the same in all of its processes.
        metrics_seconds: how often metrics are sent.
        count: told of what became of the items of a signal.
    """

    def __init__(
        self,
        endpoint: str,
        signals: Collection[str],
        *,
        ratio: float,
        follow: bool,
        scheme: str,
        worker: int | None,
        instance: str,
        metrics_seconds: float,
        count: Callable[[str, Result, int], None],
    ) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._sampler = Sampler(ratio if "traces" in signals else 0.0, follow and "traces" in signals)
        self._count = count
        self._every = metrics_seconds
        self._own = resource_of(instance, worker)
        self._service = resource_of(instance, None)
        self._findings = "findings" in signals
        self._exporters: list[Any] = []
        self._pushing: asyncio.Task[None] | None = None
        self._push: Callable[[], Awaitable[None]] | None = None
        self._traces = self._lines = None
        self._metrics: Sender[tuple[Sequence[Any], int]] | None = None
        if "traces" in signals:
            self._traces = self._trace_sender(Spans(self._own, scheme))
        if "logs" in signals:
            self._lines = self._line_sender()
            self._handler = LineHandler(self._lines.put)
        if "metrics" in signals and worker in (None, 0):
            self._metrics = self._metrics_sender()

    # `Telemetry`.

    def begin(self, headers: Headers) -> Trace:
        return self._sampler.begin(headers)

    def ended(self, record: Record) -> None:
        if self._traces is not None and record.trace is not None:
            self._traces.put(Ended.now(record, record.trace))

    def start(self, counts: Callable[[], Awaitable[Counted]]) -> None:
        if self._lines is not None:
            for logger in _loggers():
                logger.addHandler(self._handler)
        sender = self._metrics
        if sender is None:
            return

        async def push() -> None:
            try:
                families = list((await counts()).families.collect())
            except LinkLost:
                return  # the next time
            sender.put((families, time.time_ns()))

        self._push = push
        self._pushing = asyncio.create_task(self._push_often(push))

    async def stop(self, seconds: float) -> None:
        if self._lines is not None:
            for logger in _loggers():
                logger.removeHandler(self._handler)
        if self._pushing is not None and self._push is not None:
            self._pushing.cancel()
            await self._push()
        limit = max(MIN_FLUSH_SECONDS, min(FLUSH_SECONDS, seconds))
        senders: list[Sender[Any]] = [s for s in (self._traces, self._lines, self._metrics) if s is not None]
        left = sum(await asyncio.gather(*(asyncio.to_thread(sender.close, limit) for sender in senders)))
        if left:
            log.warning("%d traces, lines or metrics were not sent in %.1f s, and are lost", left, limit)
        for exporter in self._exporters:
            exporter.shutdown()

    def receivers(self) -> list[Delivery]:
        return [LogDelivery(self._exporter(OTLPLogExporter, "logs"), self._own)] if self._findings else []

    async def _push_often(self, push: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self._every)
            await push()

    # What each signal is sent by.

    def _trace_sender(self, spans: Spans) -> Sender[Ended]:
        exporter = self._kept(OTLPSpanExporter, "traces")

        def send(ended: Sequence[Ended]) -> bool:
            made = [span for each in ended for span in spans.of(each)]
            return bool(exporter.export(made) is SpanExportResult.SUCCESS)

        return self._sender("traces", send, WAITING_TRACES, BATCH)

    def _line_sender(self) -> Sender[Line]:
        exporter = self._kept(OTLPLogExporter, "logs")

        def send(lines: Sequence[Line]) -> bool:
            records = [log_record(line, self._own) for line in lines]
            return bool(exporter.export(records) is LogRecordExportResult.SUCCESS)

        return self._sender("logs", send, WAITING_LINES, BATCH)

    def _metrics_sender(self) -> Sender[tuple[Sequence[Any], int]]:
        exporter = self._kept(OTLPMetricExporter, "metrics")

        def send(collected: Sequence[tuple[Sequence[Any], int]]) -> bool:
            ((families, now_ns),) = collected
            data = metrics_data(families, now_ns, self._service, SCOPE)
            return bool(exporter.export(data) is MetricExportResult.SUCCESS)

        return self._sender("metrics", send, WAITING_METRICS, 1)

    def _kept(self, kind: Callable[..., Any], signal: str) -> Any:
        exporter = self._exporter(kind, signal)
        self._exporters.append(exporter)
        return exporter

    def _exporter(self, kind: Callable[..., Any], signal: str) -> Any:
        session = requests.Session()
        session.trust_env = False  # the endpoint is a setting; no proxy of the environment leads elsewhere
        return kind(f"{self._endpoint}/v1/{signal}", session=session)

    def _sender(self, signal: str, send: Callable[[Sequence[Any]], bool], capacity: int, batch: int) -> Sender[Any]:
        def count(result: Result, items: int) -> None:
            self._count(signal, result, items)

        return Sender(f"otlp {signal}", send, count, capacity=capacity, batch=batch, every_seconds=EVERY_SECONDS)


def _loggers() -> tuple[logging.Logger, logging.Logger]:
    """The root, and the request log, whose lines do not come to the root."""
    return logging.getLogger(), logging.getLogger(LOGGER)


def resource_of(instance: str, worker: int | None) -> Resource:
    """Whose spans these are; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over what is said here."""
    ours: dict[str, str | int] = {
        "service.name": "awnet",
        "service.version": __version__,
        "service.instance.id": instance if worker is None else f"{instance}-{worker}",
    }
    if worker is not None:
        ours |= {"awnet.worker": worker, "process.pid": os.getpid()}
    return _Resource(Resource.create({**ours, **OTELResourceDetector().detect().attributes}).attributes)


class _Resource(Resource):
    """A resource whose hash is computed once: exporters ask for it with every span, and it is a JSON document's."""

    def __init__(self, attributes: Attributes) -> None:
        super().__init__(attributes)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash
