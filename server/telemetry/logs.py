"""Log lines as OpenTelemetry's log records: those of this process, and documents that somebody else wrote."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from .. import __version__
from ..findings.delivery import DeliveryError

# What sending says of itself would be sent, and say something of itself again.
OWN = ("opentelemetry", "urllib3", "requests", "awnet.telemetry")
FINDING = "ocsf.detection_finding"  # the name of a finding's event
MAX_LINE = 16 << 10  # characters; the rest of a longer line stays in the log
_SEVERITIES = {
    logging.DEBUG: SeverityNumber.DEBUG,
    logging.INFO: SeverityNumber.INFO,
    logging.WARNING: SeverityNumber.WARN,
    logging.ERROR: SeverityNumber.ERROR,
    logging.CRITICAL: SeverityNumber.FATAL,
}


class Line(NamedTuple):
    """A line of the log."""

    logger: str
    level: int
    text: str
    unix_ns: int
    failure: str | None = None


class LineHandler(logging.Handler):
    """Hands lines to `put`, all but those of what sends them."""

    def __init__(self, put: Callable[[Line], None]) -> None:
        super().__init__()
        self._put = put

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(OWN):
            return
        try:
            failure = "".join(traceback.format_exception(*record.exc_info))[:MAX_LINE] if record.exc_info else None
            text = record.getMessage()[:MAX_LINE]
            self._put(Line(record.name, record.levelno, text, int(1e9 * record.created), failure))
        except Exception:
            self.handleError(record)


class LogDelivery:
    """Takes findings to the collector, as events: a `findings.delivery.Delivery`.

    Args:
        exporter: an OTLPLogExporter; sends them, and is closed at the end.
        resource: whose they are.
    """

    name = "otlp"

    def __init__(self, exporter: Any, resource: Resource) -> None:
        self._exporter, self._resource = exporter, resource

    async def send(self, lines: Sequence[bytes]) -> None:
        """These JSON documents, each with its own `time` where it has one. Raises DeliveryError."""
        records = [document_record(line, FINDING, self._resource) for line in lines]
        if await asyncio.to_thread(self._exporter.export, records) is not LogRecordExportResult.SUCCESS:
            raise DeliveryError("the collector has not taken them")

    async def close(self) -> None:
        """Whatever still tries, gives up."""
        self._exporter.shutdown()


def log_record(line: Line, resource: Resource) -> ReadableLogRecord:
    """`line`; what it says as JSON becomes a structured body, and its `trace_id` and `span_id` the record's."""
    body = _document(line.text)
    severity = _SEVERITIES.get(line.level, SeverityNumber.INFO)
    attributes = {"exception.stacktrace": line.failure} if line.failure else None
    return _readable(body, line.logger, line.unix_ns, severity, attributes, None, resource)


def document_record(document: bytes, event: str, resource: Resource) -> ReadableLogRecord:
    """A JSON document as an event of that name, at its `time`, milliseconds since 1970, where it has one."""
    body = _document(document)
    given = body.get("time") if isinstance(body, dict) else None
    at = 1_000_000 * given if isinstance(given, int) else time.time_ns()
    return _readable(body, "awnet.findings", at, SeverityNumber.WARN, None, event, resource)


def _readable(
    body: Any,
    logger: str,
    unix_ns: int,
    severity: SeverityNumber,
    attributes: dict[str, str] | None,
    event: str | None,
    resource: Resource,
) -> ReadableLogRecord:
    record = LogRecord(
        timestamp=unix_ns,
        observed_timestamp=time.time_ns(),
        context=_context(body),
        severity_text=severity.name,
        severity_number=severity,
        body=body,
        attributes=attributes,
        event_name=event,
    )
    return ReadableLogRecord(record, resource, InstrumentationScope(logger, __version__))


def _document(text: str | bytes) -> Any:
    if text[:1] in ("{", b"{"):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass
    return text if isinstance(text, str) else text.decode("utf-8", "replace")


def _context(body: Any) -> Any:
    """The trace that a line of the request log names."""
    if not isinstance(body, dict) or "trace_id" not in body or "span_id" not in body:
        return None
    ids = int(body["trace_id"], 16), int(body["span_id"], 16)
    return set_span_in_context(NonRecordingSpan(SpanContext(*ids, False, TraceFlags(TraceFlags.DEFAULT))))
