"""What an HTTP server costs by itself, and what each does with the requests that cost too much or are read in two ways.

Every contestant runs the same ASGI application (`harness/plain_asgi.py`) in one process on one event loop, with the
strictest settings that it has; wrk posts a 3 kB form. Figures are medians over interleaved rounds.

* `ours`: `Port` of `server/process/`, llhttp with the connections of `server/http/connection.py`, on uvicorn's loop.
* `uvicorn`, `h11`: uvicorn with the protocols that it brings, on httptools and on h11.
* `granian`: needs an interpreter that has it (`--granian PYTHON`); left out otherwise.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ..harness import report
from ..harness.closed_loop import add_rounds, lua, raw_samples, rotated, table, uploaded, wrk
from ..harness.processes import Process, free_port, rss_mb

EXAMPLES = """examples:
  python -m benchmarks.speed.http_servers                               three servers, about five minutes
  python -m benchmarks.speed.http_servers --granian ~/granian/bin/python
"""
APP = "benchmarks.harness.plain_asgi:app"
SECONDS = 3.0  # every deadline that a contestant can be told
PATIENCE = 12.0  # a probe that waits longer for an end has seen none
LIVE = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
LAST = b"Connection: close\r\n\r\n"


def main() -> int:
    parser = report.parser("speed.http_servers", __doc__, EXAMPLES)
    add_rounds(parser, [1, 8, 32])
    parser.add_argument("--granian", type=Path, metavar="PYTHON", help="an interpreter that has granian")
    report.add_out(parser, "http_servers")
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], int(options.serve[1]))
        return 0
    if report.missing("wrk"):
        return 0
    found = measure(options)
    report.conclude(options.out, found, markdown(found))
    return 0


def serve(name: str, port: int) -> None:
    """Be the contestant `name`."""
    import uvicorn

    if name == "ours":
        serve_ours(port)
        return
    strictest: dict[str, Any] = {"timeout_keep_alive": round(SECONDS), "limit_concurrency": 200}
    if name == "h11":
        strictest["h11_max_incomplete_event_size"] = 32 << 10
    http: Any = "httptools" if name == "uvicorn" else name
    uvicorn.run(APP, host="127.0.0.1", port=port, http=http, loop="uvloop", log_level="error", ws="none", **strictest)


def serve_ours(port: int) -> None:
    """The server's own port before the application."""
    from server.access.addresses import TrustedProxies
    from server.errors import AWNetError, status_of
    from server.ports.listening import listen
    from server.process.servers import Port
    from server.settings.settings import Settings

    from ..harness.plain_asgi import app

    class Front:
        proxies = TrustedProxies()

        def refused_connection(self) -> None: ...

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except AWNetError as error:
                status = status_of(error)
                await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body", "body": b""})

        def turn_away(self, error: AWNetError, client: str) -> Any:
            return status_of(error), [(b"content-type", b"application/problem+json")], b"{}"

    settings = Settings(
        header_seconds=SECONDS,
        body_seconds=SECONDS,
        keep_alive_seconds=round(SECONDS),
        max_connections=200,
        max_connections_per_client=150,
        max_held_bytes=16 << 20,
    )
    front: Any = Front()
    Port(front, listen("127.0.0.1", port, "--port"), settings).run()


def contestant(name: str, python: Path | None) -> tuple[int, Process]:
    """Start contestant `name`; its port and process."""
    port = free_port()
    if name != "granian":
        return port, Process([sys.executable, "-m", "benchmarks.speed.http_servers", "--serve", name, str(port)])
    strictest = ["--http1-buffer-size", "32768", "--http1-header-read-timeout", str(round(1000 * SECONDS))]
    strictest += ["--backpressure", "200", "--no-ws", "--loop", "uvloop", "--interface", "asginl", "--no-log"]
    return port, Process([python or "", "-m", "granian", *strictest, "--http", "1", "--port", str(port), APP])


# Probes: each is true where the server does what the list asks.


class Talk:
    """One connection, and what came back."""

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE, (address, 0))

    def send(self, data: bytes) -> Talk:
        with suppress(OSError):  # it has had enough
            self.socket.sendall(data)
        return self

    def rest(self) -> bytes | None:
        """Until it closes; None where it does not in time."""
        answer, end = b"", time.monotonic() + PATIENCE
        try:
            while time.monotonic() < end:
                data = self.socket.recv(65536)
                if not data:
                    return answer
                answer += data
        except TimeoutError:
            return None
        except OSError:
            return answer
        return None


def status(answer: bytes | None) -> int:
    """Of the first response; 0 for none, -1 where the connection stays open."""
    if answer is None:
        return -1
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


def asked(port: int, request: bytes) -> int:
    return status(Talk(port).send(request).rest())


def endless_header(port: int) -> bool:
    return asked(port, LIVE + b"A: " + b"b" * (4 << 20)) == 431


def many_headers(port: int) -> bool:
    return asked(port, LIVE + b"A: b\r\n" * 500 + LAST) == 431


def long_target(port: int) -> bool:
    return asked(port, b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n" + LAST) == 414


def slow_header(port: int) -> bool:
    return asked(port, LIVE) == 408


def silence(port: int) -> bool:
    return Talk(port).rest() is not None


def slow_body(port: int) -> bool:
    return asked(port, POST + b"Content-Length: 1000\r\n\r\nhalf") == 408


def crowd(port: int) -> bool:
    """A client beside 400 silent ones of other addresses."""
    held = [Talk(port, f"127.0.0.{2 + n % 4}") for n in range(400)]
    good = status(Talk(port, "127.0.0.9").send(LIVE + LAST).rest())
    for talk in held:
        talk.socket.close()
    return good == 200


def upgrade(port: int) -> bool:
    ask = POST + b"Connection: Upgrade, close\r\nUpgrade: h2c\r\nContent-Length: 40\r\n\r\n" + b"x" * 40
    answer = Talk(port).send(ask).rest() or b""
    return b"x-size: 40" in answer.lower()


def half_closed(port: int) -> bool:
    talk = Talk(port).send(LIVE + b"\r\n")
    talk.socket.shutdown(socket.SHUT_WR)
    return status(talk.rest()) == 200


def trailer(port: int) -> bool:
    ask = POST + b"X-Probe: a\r\nTransfer-Encoding: chunked\r\n" + LAST + b"1\r\nx\r\n0\r\nX-Probe: b\r\n\r\n"
    answer = (Talk(port).send(ask).rest() or b"").lower()
    return b"x-seen: a\r\n" in answer


def coding(port: int) -> bool:
    return asked(port, POST + b"Transfer-Encoding: gzip, chunked\r\n" + LAST + b"1\r\nx\r\n0\r\n\r\n") == 501


def hosts(port: int) -> bool:
    none, two = b"GET / HTTP/1.1\r\n" + LAST, LIVE + b"Host: y\r\n" + LAST
    return asked(port, none) == asked(port, two) == 400


def framing(port: int) -> bool:
    answer = Talk(port).send(b"nonsense\r\n\r\n").rest() or b""
    return status(answer) == 400 and b"problem+json" in answer


PROBES: dict[str, Callable[[int], bool]] = {
    "endless header: 431": endless_header,
    "500 headers: 431": many_headers,
    "60 kB target: 414": long_target,
    "half a header: 408": slow_header,
    "silent connection: closed": silence,
    "half a body: 408": slow_body,
    "a client beside 400 silent ones: answered": crowd,
    "Upgrade on a POST: its body is read": upgrade,
    "half-closed client: answered": half_closed,
    "trailer: overrides no header": trailer,
    "gzip, chunked: 501": coding,
    "none or two Host: 400": hosts,
    "broken framing: a problem document": framing,
}


def held_mb(port: int, pid: int) -> float:
    """What 40 stalled uploads of 4 MB each keep, MB."""
    before = rss_mb(pid)
    held = [Talk(port, f"127.0.1.{n}").send(POST + b"Content-Length: 8000000\r\n\r\n") for n in range(40)]
    for talk in held:
        talk.send(b"x" * (4 << 20))
    kept_mb = rss_mb(pid) - before
    for talk in held:
        talk.socket.close()
    return kept_mb


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds, then the probes; returns the report."""
    names = ("ours", "uvicorn", "h11", *(("granian",) if options.granian else ()))
    samples: dict[str, dict[int, list[dict[str, float]]]] = {name: {c: [] for c in options.clients} for name in names}
    facts = report.loaded_machine()
    with ExitStack() as stack:
        script = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "post.lua"
        script.write_bytes(lua(uploaded(None)))
        running = {}
        for name in names:
            port, process = contestant(name, options.granian)
            running[name] = port, stack.enter_context(process)
            process.answering(f"http://127.0.0.1:{port}/", 180)
            wrk(port, 2, 1.0, script)
        for turn in range(options.rounds):
            for clients in options.clients:
                for name in rotated(names, turn):
                    port, process = running[name]
                    samples[name][clients].append(wrk(port, clients, options.seconds, script, pids(process, name)))
        probes = {name: {what: probe(running[name][0]) for what, probe in PROBES.items()} for name in names}
        held = {name: held_mb(port, pids(process, name)[-1]) for name, (port, process) in running.items()}
    return {
        "what": "an ASGI application that only reads and answers, behind four HTTP servers",
        "machine": facts,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "servers": table(samples),
        "probes": probes,
        "held_mb": held,
        "samples": raw_samples(samples),
    }


def pids(process: Process, name: str) -> list[int]:
    """The processes of a contestant; granian's worker is a child."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
    return [process.pid, *map(int, children if name == "granian" else ())]


def markdown(found: dict[str, Any]) -> str:
    """The report as a page."""
    names = list(found["servers"])
    lines = [
        "# HTTP servers under the same application",
        "",
        f"{found['machine']['cpu']}, {found['machine']['cores']} cores shared with wrk, load "
        f"{found['machine']['load_before'][0]:.1f} at the start; medians of {found['rounds']} interleaved rounds of "
        f"{found['seconds']:g} s. Made by `python -m benchmarks.speed.http_servers --granian PYTHON`.",
        "",
        "| clients | " + " | ".join(f"{name}: req/s, CPU ms a request" for name in names) + " |",
        "|---" * (1 + len(names)) + "|",
    ]
    for clients in found["servers"][names[0]]:
        rows = [found["servers"][name][clients] for name in names]
        lines.append(f"| {clients} | " + " | ".join(f"{row['rps']:.0f}, {row['cpu_ms']:.3f}" for row in rows) + " |")
    lines += ["", "| probe | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for what in PROBES:
        lines.append(f"| {what} | " + " | ".join("yes" if found["probes"][n][what] else "no" for n in names) + " |")
    held = " | ".join(f"{found['held_mb'][name]:.0f} MB" for name in names)
    lines += [f"| 40 stalled uploads of 4 MB hold | {held} |", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
