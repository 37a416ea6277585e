"""A small real collector: takes OTLP over HTTP, reads its protobufs, and keeps what came."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.harness.processes import free_port

KINDS: dict[str, Any] = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
}


class Span(NamedTuple):
    """A span that came; ids as hexadecimal digits."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    status: int
    start: int
    end: int
    state: str
    attributes: dict[str, Any]
    events: dict[str, dict[str, Any]]
    resource: dict[str, Any]


class Collector:
    """Listens on 127.0.0.1 until it is closed; `begin` again listens on the same port.

    Attributes:
        received: (path, message) of each request so far.
        status: with which it answers.
        open: while it is not set, requests are taken and not answered.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.received: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.raw = b""
        self.status = 200
        self.open = threading.Event()
        self.open.set()
        self._server: ThreadingHTTPServer | None = None

    def begin(self) -> Collector:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.open.wait()
                if collector.status == 200:
                    collector.raw += body
                    collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                    collector.received.append((self.path, KINDS[self.path].FromString(body)))
                with suppress(OSError):
                    self.send_response(collector.status)
                    self.send_header("content-length", "0")
                    self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

        self._server = Quiet(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def close(self) -> None:
        self.open.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Collector:
        return self.begin()

    def __exit__(self, *_: object) -> None:
        self.close()

    def messages(self, path: str) -> list[Any]:
        """Those that came to `path`."""
        return [message for at, message in list(self.received) if at == path]

    def spans(self) -> list[Span]:
        """All spans so far."""
        return list(self._spans())

    def traces(self) -> dict[str, list[Span]]:
        """Spans by their trace."""
        found: dict[str, list[Span]] = {}
        for span in self._spans():
            found.setdefault(span.trace_id, []).append(span)
        return found

    def _spans(self) -> Iterator[Span]:
        for message in self.messages("/v1/traces"):
            for of_resource in message.resource_spans:
                resource = values(of_resource.resource.attributes)
                for of_scope in of_resource.scope_spans:
                    for span in of_scope.spans:
                        yield Span(
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.kind,
                            span.status.code,
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            span.trace_state,
                            values(span.attributes),
                            {event.name: values(event.attributes) for event in span.events},
                            resource,
                        )


def value(given: Any) -> Any:
    """An AnyValue as Python has it."""
    kind = given.WhichOneof("value")
    if kind == "kvlist_value":
        return values(given.kvlist_value.values)
    if kind == "array_value":
        return [value(one) for one in given.array_value.values]
    return None if kind is None else getattr(given, kind)


def values(attributes: Any) -> dict[str, Any]:
    """Attributes by their keys."""
    return {attribute.key: value(attribute.value) for attribute in attributes}
