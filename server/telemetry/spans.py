"""The spans of one request, made once it is over: the server's, and what its time was spent on.

Names and attributes are those of OpenTelemetry's semantic conventions where they have any, and `awnet.*` otherwise.
A span holds nothing that a line of the request log may not: no path, image, file name, address, key or score.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.semconv._incubating.attributes import rpc_attributes as rpc
from opentelemetry.semconv.attributes import error_attributes, http_attributes
from opentelemetry.semconv.attributes.url_attributes import URL_SCHEME
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from .. import __version__
from ..core.engine import Execution, Timeline
from ..core.trace import Trace, new_span_id
from ..monitoring.metrics import METHODS, OTHER
from ..monitoring.request_log import Record

SCOPE = InstrumentationScope("awnet", __version__, Schemas.V1_44_0.value)
GRPC = "GRPC"  # the method of a record
# Statuses of gRPC that are the server's fault, by the conventions.
_GRPC_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})

Value = str | int | float
Attributes = Mapping[str, Value]


class Ended(NamedTuple):
    """A request that is over, with as much of it as its spans need: neither pixels nor outputs.

    Attributes:
        stages: seconds of decode, queue and inference, as they are counted.
        cached: the answer came from the cache.
        unix_ns, monotonic: the same time on two clocks.
    """

    record: Record
    trace: Trace
    timeline: Timeline | None
    stages: tuple[float, float, float]
    cached: bool
    unix_ns: int
    monotonic: float

    @classmethod
    def now(cls, record: Record, trace: Trace) -> Ended:
        """Of a record that ends now, whose `signals` are let go."""
        signals, record.signals = record.signals, None
        stages = (0.0, 0.0, 0.0)
        if signals is not None:
            stages = (signals.decode_seconds, signals.queue_seconds, signals.inference_seconds)
        timeline = signals.timeline if signals else None
        cached = signals is not None and signals.cached
        return cls(record, trace, timeline, stages, cached, time.time_ns(), time.monotonic())

    def at(self, monotonic: float) -> int:
        """A time on `time.monotonic` as nanoseconds since 1970."""
        return self.unix_ns + round(1e9 * (monotonic - self.monotonic))


@dataclass(frozen=True, slots=True)
class Spans:
    """Makes the spans of one process.

    Args:
        resource: whose they are.
        scheme: `http` or `https`.
    """

    resource: Resource
    scheme: str

    def of(self, ended: Ended) -> Iterator[ReadableSpan]:
        """The server's span and its children."""
        timeline = ended.timeline
        yield self._server(ended)
        for note in ended.record.notes or ():
            if note.until is not None:
                yield self._child(ended, note.name, note.at, note.until, note.attributes, note.error)
        if timeline is None:
            return
        # What no clock saw: a batch is executed once all its images are decoded, those of others too.
        if timeline.decode_started > timeline.arrived:
            yield self._child(ended, "queue", timeline.arrived, timeline.decode_started, {})
        if all(note.name != "decode" for note in ended.record.notes or ()):  # else the pixels were there before
            yield self._child(ended, "decode", timeline.decode_started, timeline.decode_ended, {})
        model = _model(ended.record)
        for execution in timeline.executions:
            attributes = {"awnet.batch.images": execution.images, **model, **_execution(execution)}
            until = execution.started + execution.seconds
            kind = SpanKind.INTERNAL if execution.span_id is None else SpanKind.CLIENT
            yield self._child(
                ended, "inference", execution.started, until, attributes, span_id=execution.span_id, kind=kind
            )

    def _server(self, ended: Ended) -> ReadableSpan:
        record, trace = ended.record, ended.trace
        name, attributes, fault = _http(record, self.scheme) if record.method != GRPC else _rpc(record)
        attributes = {**attributes, "awnet.request.id": record.request_id, **_model(record)}
        if record.judgements:
            attributes["awnet.images"] = len(record.judgements)
            for stage, seconds in zip(("decode", "queue", "inference"), ended.stages, strict=True):
                attributes[f"awnet.{stage}.seconds"] = round(seconds, 6)
        if ended.cached:
            attributes["awnet.cached"] = True
        if record.reason is not None:
            attributes[error_attributes.ERROR_TYPE] = record.reason
        parent = None if trace.parent_id is None else _context(trace, trace.parent_id, remote=True)
        return ReadableSpan(
            name,
            _context(trace, trace.span_id),
            parent,
            self.resource,
            attributes,
            [Event(note.name, note.attributes, ended.at(note.at)) for note in record.notes or () if note.until is None],
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR) if fault else Status(StatusCode.UNSET),
            start_time=ended.at(record.started),
            end_time=ended.at(record.started + record.seconds),
            instrumentation_scope=SCOPE,
        )

    def _child(
        self,
        ended: Ended,
        name: str,
        started: float,
        until: float,
        attributes: Attributes,
        error: str | None = None,
        *,
        span_id: str | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> ReadableSpan:
        trace = ended.trace
        if error is not None:
            attributes = {**attributes, error_attributes.ERROR_TYPE: error}
        return ReadableSpan(
            name,
            _context(trace, span_id or new_span_id()),
            _context(trace, trace.span_id),
            self.resource,
            attributes,
            kind=kind,
            status=Status(StatusCode.UNSET if error is None else StatusCode.ERROR),
            start_time=ended.at(started),
            end_time=ended.at(until),
            instrumentation_scope=SCOPE,
        )


def _context(trace: Trace, span_id: str, remote: bool = False) -> SpanContext:
    state = TraceState.from_header([trace.state]) if trace.state else None
    return SpanContext(int(trace.trace_id, 16), int(span_id, 16), remote, TraceFlags(TraceFlags.SAMPLED), state)


def _http(record: Record, scheme: str) -> tuple[str, dict[str, Value], bool]:
    """Name and attributes of the server's span, and whether it failed."""
    method = record.method if record.method in METHODS else "_OTHER"
    attributes: dict[str, Value] = {
        http_attributes.HTTP_REQUEST_METHOD: method,
        http_attributes.HTTP_RESPONSE_STATUS_CODE: record.status,
        URL_SCHEME: scheme,
    }
    name = method if method != "_OTHER" else "HTTP"
    if record.route != OTHER:
        attributes[http_attributes.HTTP_ROUTE] = record.route
        name = f"{name} {record.route}"
    return name, attributes, record.status >= 500


def _rpc(record: Record) -> tuple[str, dict[str, Value], bool]:
    known = record.route != OTHER
    method = record.route.removeprefix("/") if known else "_OTHER"
    code = record.code or "CANCELLED"  # no answer was sent: the client left
    attributes: dict[str, Value] = {
        rpc.RPC_SYSTEM_NAME: "grpc",
        rpc.RPC_METHOD: method,
        rpc.RPC_RESPONSE_STATUS_CODE: code,
    }
    return method if known else "grpc", attributes, code in _GRPC_FAULTS


def _model(record: Record) -> dict[str, Value]:
    """Which version answered in which mode, and its verdicts."""
    if record.model is None:
        return {}
    verdicts = Counter(judged.verdict for judged in record.judgements)
    return {
        "awnet.model.name": record.model.name,
        "awnet.model.version": str(record.model.version),
        "awnet.mode": record.mode or "",
        **{f"awnet.verdict.{verdict}": count for verdict, count in verdicts.items()},
    }


def _execution(execution: Execution) -> dict[str, Value]:
    """Of an execution in this process, its number: spans of other requests with the same one shared it."""
    return {"awnet.batch.number": execution.batch} if execution.batch else {}
