"""What tracing costs `/predict`: the CPU time of a request with and without an endpoint, at several ratios, in turn.

The parts of it alone are timed on a thread of this process.

The spans go to a sink in this process, which takes and forgets them. Figures are ratios to the server without an
endpoint, in pairs: the median, and the quartiles. `--before` adds a checkout from before there was tracing.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from server.core.engine import Execution, Timeline
from server.monitoring.request_log import Record
from server.telemetry.exporting import resource_of
from server.telemetry.spans import Ended, Spans
from server.telemetry.tracing import Sampler

from ..harness import report
from ..harness.closed_loop import add_image, add_rounds, lua, medians, ratios, raw_samples, rotated, uploaded, wrk
from ..harness.processes import Server

EXAMPLES = """examples:
  git worktree add --detach ../before COMMIT
  python -m benchmarks.monitoring.telemetry --before ../before --rounds 10
"""
RATIOS = ("0", "0.01", "1")
OFF, BEFORE = "off", "before"


def main() -> int:
    parser = report.parser("monitoring.telemetry", __doc__, EXAMPLES)
    add_image(parser)
    add_rounds(parser, [1, 8])
    parser.add_argument("--before", type=Path, help="another checkout, without tracing")
    parser.add_argument("--version", default="latest", help="of the model [latest]")
    report.add_out(parser, "telemetry")
    options = parser.parse_args()
    if report.missing("wrk"):
        return 0
    facts = report.loaded_machine()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (script := scratch / "post.lua").write_bytes(lua(uploaded(options.image)))
        endpoint = stack.enter_context(sink())
        settings: dict[str, tuple[Path, dict[str, object]]] = {OFF: (report.ROOT, {})}
        for ratio in RATIOS:
            settings[ratio] = report.ROOT, {"otlp_endpoint": endpoint, "trace_ratio": ratio}
        if options.before is not None:
            settings[BEFORE] = options.before.resolve(), {}
        servers = {}
        for name, (folder, more) in settings.items():
            servers[name] = server = stack.enter_context(Server(scratch, folder, version=options.version, **more))
            server.wait_ready(180)
            wrk(server.port, 2, 1.0, script)
        samples: dict[str, dict[int, list[dict[str, float]]]] = {n: {c: [] for c in options.clients} for n in servers}
        for turn in range(options.rounds):
            for clients in options.clients:
                for name in rotated(list(servers), turn):
                    server = servers[name]
                    samples[name][clients].append(wrk(server.port, clients, options.seconds, script, [server.pid]))
    found: dict[str, Any] = {
        "parts_us": parts(),
        "what": "POST /predict of one small image, without tracing and with it",
        "machine": facts,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "cpu_ms": {str(c): medians(samples[OFF][c])["cpu_ms"] for c in options.clients},
        "ratios": {
            name: {str(c): ratios(samples[OFF][c], samples[name][c]) for c in options.clients}
            for name in servers
            if name != OFF
        },
        "samples": raw_samples(samples),
    }
    report.conclude(options.out, found, markdown(found))
    return 0


@contextmanager
def sink(took: Callable[[bytes], None] = lambda body: None) -> Iterator[str]:
    """A collector that tells `took` of what comes, and keeps nothing; its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            took(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def parts(traces: int = 256, rounds: int = 20) -> dict[str, float]:
    """Microseconds of CPU time, medians: to begin the trace of a request, and to make and write four spans of one."""
    sampler, spans = Sampler(1.0, True), Spans(resource_of("benchmark", None), "http")
    headers = [(b"host", b"127.0.0.1:8000"), (b"user-agent", b"wrk"), (b"content-type", b"image/png")] * 3
    begun, made = [], []
    for _ in range(rounds):
        start = time.thread_time()
        begun_traces = [sampler.begin(headers) for _ in range(traces)]
        begun.append(time.thread_time() - start)
        now = time.monotonic()
        timeline = Timeline(now, now + 0.001, now + 0.0015, [Execution(now + 0.0016, 0.001, 2, 5)])
        ended = [
            Ended(
                Record("r" * 32, "/predict", "POST", 200, 0.003, trace=trace),
                trace,
                timeline,
                (0.0, 0.0, 0.0),
                False,
                time.time_ns(),
                now,
            )
            for trace in begun_traces
        ]
        start = time.thread_time()
        encode_spans([span for one in ended for span in spans.of(one)]).SerializePartialToString()
        made.append(time.thread_time() - start)
    return {name: 1e6 * statistics.median(each) / traces for name, each in (("begin", begun), ("spans", made))}


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        "# What tracing costs",
        "",
        f"{found['machine']['cpu']}, {found['machine']['cores']} cores shared with wrk and other work, load "
        f"{found['machine']['load_before'][0]:.1f} at the start; {found['rounds']} rounds of {found['seconds']:g} s. "
        "Ratios to the server without an endpoint: the median, and the quartiles. Made by "
        "`python -m benchmarks.monitoring.telemetry --before DIR`.",
        "",
        "| server | clients | CPU time a request | requests a second |",
        "|---|---|---|---|",
    ]
    names = {BEFORE: "before there was tracing"} | {r: f"an endpoint, `AWNET_TRACE_RATIO={r}`" for r in RATIOS}
    for name, by in found["ratios"].items():
        for clients, row in by.items():
            cells = [f"{row[key][1]:.3f} ({row[key][0]:.3f} to {row[key][2]:.3f})" for key in ("cpu_ms", "rps")]
            lines.append(f"| {names[name]} | {clients} | {cells[0]} | {cells[1]} |")
    cpu_times = ", ".join(f"{value:.2f} ms with {clients}" for clients, value in found["cpu_ms"].items())
    by_part = found["parts_us"]
    lines += [
        "",
        f"CPU time of a request without an endpoint: {cpu_times} clients.",
        "",
        f"Parts alone: {by_part['begin']:.1f} µs to read the headers of a request and begin its trace, sampled or not; "
        f"{by_part['spans']:.0f} µs to make and write four spans, on the thread that sends, for one that is.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
