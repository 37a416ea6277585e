"""Draws the spans of one request, from a live server to a collector in this process, as lines on a time scale.

The request has two images, of which one has to be decoded by a process of its own, and comes among many others.
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ..harness import report
from ..harness.load import noise_png
from ..harness.processes import Server
from ..harness.waiting import eventually
from .telemetry import sink

EXAMPLES = """examples:
  python -m benchmarks.monitoring.draw_trace
"""
WIDTH, NAME = 56, 14
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SHOWN = ("awnet.batch.images", "awnet.batch.number", "awnet.decode.seconds", "awnet.queue.seconds")


def main() -> int:
    report.parser("monitoring.draw_trace", __doc__, EXAMPLES).parse_args()
    spans: list[Any] = []

    def took(body: bytes) -> None:
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for of_scope in of_resource.scope_spans:
                spans.extend(of_scope.spans)

    small, large = noise_png(32, 0), noise_png(750, 1)
    with (
        tempfile.TemporaryDirectory() as scratch,
        sink(took) as endpoint,
        Server(Path(scratch), otlp_endpoint=endpoint, trace_ratio=0) as server,
        ThreadPoolExecutor(16) as pool,
    ):
        server.wait_ready()

        def ask(traced: bool) -> None:
            files = [("image", ("a.png", small)), *([("image", ("b.png", large))] if traced else [])]
            headers = {"traceparent": TRACEPARENT} if traced else {}
            httpx.post(f"{server.url}/predict", files=files, headers=headers, timeout=60).raise_for_status()

        for _ in range(4):  # processes that decode are there, and the model's batches were learnt
            httpx.post(f"{server.url}/predict", files={"image": large}, timeout=60)
        list(pool.map(ask, [False] * 32 + [True] + [False] * 96))
        eventually(lambda: any(span.kind == 2 for span in spans))
    print(drawn(spans))
    return 0


def drawn(spans: list[Any]) -> str:
    """A line a span: name, where it lies, how long it took, and some of its attributes."""
    (root,) = [span for span in spans if span.kind == 2]
    begin, whole = root.start_time_unix_nano, root.end_time_unix_nano - root.start_time_unix_nano
    lines = [f"trace {root.trace_id.hex()}, parent {root.parent_span_id.hex()}"]
    for span in sorted(spans, key=lambda span: (span is not root, span.start_time_unix_nano)):
        left = round(WIDTH * (span.start_time_unix_nano - begin) / whole)
        long = max(1, round(WIDTH * (span.end_time_unix_nano - span.start_time_unix_nano) / whole))
        bar = (" " * left + "=" * long)[:WIDTH].ljust(WIDTH)
        seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        shown = {a.key: a.value for a in span.attributes if a.key in SHOWN}
        attributes = ", ".join(f"{key.removeprefix('awnet.')} {_value(value)}" for key, value in shown.items())
        name = span.name if span is root else f"  {span.name}"
        lines.append(f"{name:<{NAME}} |{bar}| {seconds:7.2f} ms  {attributes}".rstrip())
    return "\n".join(lines)


def _value(attribute: Any) -> str:
    value = getattr(attribute, attribute.WhichOneof("value"))
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
